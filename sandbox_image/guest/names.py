"""The names that cells find in their namespace, and the builtins of an interactive Python."""

from __future__ import annotations

import _sitebuiltins
import builtins
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from .. import protocol
from .primitives import Primitives, ToolError, WorkerBatchError, WorkerError
from .run_functions import run_functions

_BLOCKED = {
    "eval": "eval() is switched off here: write the expression into the block itself",
    "exec": "exec() is switched off here: write the code into the block itself",
    "compile": "compile() is switched off here: write the code into the block itself",
}
_read_line = builtins.input


class CellNames:
    """The names of a session: each exists only where the caller of the sandbox passed it.

    Where a question or a worker is given, there is a run: its names are restored before each cell, and
    ``eval``, ``exec``, ``compile`` and ``input`` refuse in the cells, not in libraries.
    """

    def __init__(
        self, start: protocol.Start, context: object, primitives: Primitives, tools: dict[str, Any]
    ) -> None:
        self._is_run = start.query is not None or start.has_worker
        self._names = self._of_run(start, primitives) if self._is_run else {}
        if start.has_context:
            self._names["context"] = context
        if start.host_tools:
            self._names["ToolError"] = ToolError
        # Restored even outside of a run: the caller of the sandbox gave them.
        self._tools = tools
        self._is_first = True

    def _of_run(self, start: protocol.Start, primitives: Primitives) -> dict[str, Any]:
        worker, worker_batch, final = run_functions(primitives)
        names: dict[str, Any] = {"FINAL": final}
        if start.query is not None:
            names["query"] = start.query
        if start.has_worker:
            names |= {"worker": worker, "worker_batch": worker_batch}
            names |= {"WorkerError": WorkerError, "WorkerBatchError": WorkerBatchError}
        places = [
            f"the {what} in `{name}`"
            for what, name, is_given in (
                ("document is", "context", start.has_context),
                ("question is", "query", start.query is not None),
            )
            if is_given
        ]
        message = f"input() has no user to ask: {' and '.join(places) or 'write the value into the block'}"
        names |= {name: _refusal(text) for name, text in {**_BLOCKED, "input": message}.items()}
        return names

    @property
    def has_document(self) -> bool:
        """Whether the document is in ``context``."""
        return "context" in self._names

    def prepare(self, namespace: dict[str, Any]) -> None:
        """Prepare the namespace for a cell."""
        if self._is_run or self._is_first:
            self._is_first = False
            namespace.update(self._names)
        namespace.update(self._tools)
        namespace["__builtins__"] = builtins


def prepare_interpreter() -> None:
    """Set what a script or a terminal has: ``sys.path``, ``exit``, ``help``, ``input``."""
    # The host's arguments name folders of the host.
    sys.argv = [""]
    sys.orig_argv = [sys.executable]
    # A file that is written again within a second would be taken for the compiled one.
    sys.dont_write_bytecode = True
    sys.path.insert(0, os.getcwd())
    # As ``site`` does, which is not imported.
    printer = _sitebuiltins._Printer  # pyright: ignore[reportPrivateUsage]  # as above
    added = {
        "exit": _Leave("exit"),
        "quit": _Leave("quit"),
        "help": _sitebuiltins._Helper(),  # pyright: ignore[reportPrivateUsage]  # as ``site`` does, which is not imported
        "copyright": printer("copyright", sys.copyright),
        "credits": printer("credits", "See https://www.python.org for the people of Python."),
        "license": printer("license", "See https://docs.python.org/3/license.html"),
        "input": _input,
    }
    builtins.__dict__.update(added)


class _Leave:
    # Python's own closes stdin, which the next cell needs.

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"Use {self._name}() to end the cell; its variables stay"

    def __call__(self, code: object = None) -> NoReturn:
        raise SystemExit(code)


def _input(prompt: object = "", /) -> str:
    """Read a line from ``sys.stdin``, where the code has set one."""
    if sys.stdin is None or sys.stdin is sys.__stdin__:
        raise EOFError(
            "input() has nobody to ask: there is no terminal. Assign the value in the code, or set sys.stdin "
            "to io.StringIO(TEXT)"
        )
    return _read_line(prompt)


_input.__name__ = _input.__qualname__ = "input"
_input.__module__ = "builtins"


def _refusal(message: str) -> Callable[..., NoReturn]:
    def blocked(*_: object, **__: object) -> NoReturn:
        raise RuntimeError(message)

    return blocked
