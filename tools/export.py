"""Exports data sets for distillation. Exit codes: 0 written, 2 wrong argument, no eval, or ``out`` exists."""

from __future__ import annotations

import sys

import typer

from ..engine.cli.command import Command
from ..engine.cli.options import HELP_OPTIONS
from ..engine.errors import TaskError
from ..sandbox_image.text import printable
from .distill.export_cli import export


def main() -> None:
    """Run the command, and print an error in one line."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=HELP_OPTIONS,
    )
    app.command(cls=Command)(export)
    try:
        app()
    except TaskError as error:
        print(f"export: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
