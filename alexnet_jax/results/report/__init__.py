"""Runs side by side: `python -m alexnet_jax.results.report DIR...`."""
