"""An audit hook that records what the engine deserialises in a test run; it must be nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import supdist.engine

_PACKAGES = str(Path(supdist.engine.__file__).resolve().parent.parent)
_NOT_THE_ENGINE = (
    str(Path(__file__).resolve().parent),
    f"{_PACKAGES}/.venv",
    f"{_PACKAGES}/tests",
    f"{_PACKAGES}/sandbox_image/guest",  # runs behind the walls, and here in unit tests of its parts
)

deserialised: list[str] = []
"""Each find_class and marshal.loads that code of the package caused, with its place."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in ("pickle.find_class", "marshal.loads"):
        return
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # the only way to the caller's frame
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith("<frozen importlib") or "/_pytest/" in file:
            return  # a module's own bytecode
        if file.startswith(_PACKAGES) and not file.startswith(_NOT_THE_ENGINE):
            deserialised.append(f"{event} {str(arguments)[:200]} in {file}:{frame.f_lineno}")
            return
        frame = frame.f_back


sys.addaudithook(_audit)
