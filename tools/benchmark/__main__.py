"""Run the benchmark: ``python -m supdist.tools.benchmark``."""

from __future__ import annotations

import sys

import typer

from ...engine import SandboxError
from .command import benchmark

if __name__ == "__main__":
    try:
        typer.run(benchmark)
    except SandboxError as error:
        sys.exit(f"benchmark: {error}")
