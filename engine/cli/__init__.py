"""The command line. Its modules import heavy ones inside functions: ``--help`` loads them all."""

from __future__ import annotations

from .main import app, main, run_app

__all__ = ["app", "main", "run_app"]
