"""The console script ``supdist-engine``."""

from __future__ import annotations

from ..engine.cli.signals import end_at_signals


def main() -> None:
    """Run the console script."""
    # Before the imports, which take long: Ctrl-C would be a traceback.
    end_at_signals()
    from ..engine.cli.main import run_app
    from .commands import app

    run_app(app)


if __name__ == "__main__":
    main()
