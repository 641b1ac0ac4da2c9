"""Read the context of a command, and print what was guessed or skipped."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ...sandbox_image.text import printable
from ..documents import Context, read_context
from ..documents.reading import Value
from ..terminal import wrapped
from .stdin import read_bytes


async def load(files: Sequence[str | Path], name: str = "context", *, raw_html: bool = False) -> Context:
    """Return the context that a person names: files, folders, patterns, and ``-`` for stdin.

    Raises:
        TaskError: a file cannot be read.
    """
    return await read_context(files, name=name, stdin=read_stdin, raw_html=raw_html)


def read_stdin() -> bytes:
    """Return the document on stdin.

    Raises:
        TaskError: it is closed or empty.
    """
    return read_bytes("the document")


def print_warnings(context: Context) -> Value:
    """Print the warnings of a context on stderr, and return its value."""
    for each in context.warnings:
        print(wrapped(f"supdist-engine: {printable(each)}"), file=sys.stderr)
    return context.value
