"""Experiments: examples of a task run by an arm, recorded, compared, and exported."""
