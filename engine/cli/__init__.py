"""The command line. Its modules import heavy ones inside functions, since ``--help`` loads all of them."""

from __future__ import annotations

from .main import app, main, run_app

__all__ = ["app", "main", "run_app"]
