"""Model endpoints for tests."""
