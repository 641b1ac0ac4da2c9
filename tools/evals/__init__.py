"""Evals: examples of a task, answered by a strategy, recorded and compared."""
