"""Benchmarks, one file each; every one runs every method and writes results rows."""
