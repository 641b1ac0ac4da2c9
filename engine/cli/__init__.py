"""The command line. Modules that it loads at the start import nothing heavy: ``--help`` waits for all of them."""

from __future__ import annotations

from .main import app, main, run_app

__all__ = ["app", "main", "run_app"]
