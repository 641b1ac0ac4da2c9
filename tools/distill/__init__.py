"""Data sets for training smaller supervisors: export of runs, and replay of an export."""
