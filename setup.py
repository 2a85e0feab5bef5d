"""What setup.cfg cannot say: configs lie beside the package in a checkout, in it once installed."""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=['alexnet_jax*']), 'alexnet_jax.configs'],
  package_dir={'alexnet_jax.configs': 'configs'},
)
