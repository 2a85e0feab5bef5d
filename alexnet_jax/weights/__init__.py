"""Reads and writes trained weights."""
