"""Programs that stand in for others inside a sandbox."""
