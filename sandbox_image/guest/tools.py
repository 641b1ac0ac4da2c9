"""Load guest tools, and make stand-ins for host tools."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .. import protocol
from .primitives import Primitives


def load(start: protocol.Start, primitives: Primitives) -> dict[str, Any]:
    """Return the tools by name; one that cannot be loaded raises ImportError when called."""
    tools: dict[str, Any] = {tool.name: _load(tool) for tool in start.guest_tools}
    for number, tool in enumerate(start.host_tools):
        tools[tool.name] = _stand_in(number, tool, primitives.call_tool)
    return tools


def _load(tool: protocol.GuestTool) -> object:
    try:
        return pickle.loads(tool.pickle)  # noqa: S301 - the host wrote it
    except Exception as error:
        return _missing(
            f"the tool {tool.name} cannot be used here: {type(error).__name__}: {error}. "
            "A tool brings only its own module; from others it can use the standard library"
        )


def _missing(message: str) -> Callable[..., NoReturn]:
    def missing(*_: object, **__: object) -> NoReturn:
        raise ImportError(message)

    return missing


def _stand_in(
    number: int, tool: protocol.HostTool, call: Callable[[int, Sequence[object], dict[str, object]], object]
) -> Callable[..., object]:
    def ask(*args: object, **kwargs: object) -> object:
        return call(number, args, kwargs)

    ask.__name__ = ask.__qualname__ = tool.name
    ask.__doc__ = tool.doc
    return ask
