"""The loop of a run: what the supervisor model is told, what it writes, and what it is shown."""
