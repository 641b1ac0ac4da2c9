"""Run the console script ``supdist-engine`` as ``python -m supdist.engine``, with all its commands."""

from __future__ import annotations

from .cli.signals import end_at_signals


def main() -> None:
    """Run the console script."""
    # Before the imports, which take long: Ctrl-C would be a traceback.
    end_at_signals()
    import sys
    from importlib.metadata import entry_points

    # The console script is in tools, which the engine must not import: its entry point names it.
    scripts = entry_points(group="console_scripts", name="supdist-engine")
    if not scripts:
        sys.exit("supdist-engine is not installed for this Python; in a checkout: pip install -e .")
    next(iter(scripts)).load()()


if __name__ == "__main__":
    main()
