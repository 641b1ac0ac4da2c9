"""Programs that use all of it."""
