"""Benchmarks: data and scoring. Nothing here imports the engine."""
