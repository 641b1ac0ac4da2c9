"""Endpoints to test against."""
