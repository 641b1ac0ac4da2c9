"""Say in a line which models answer, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, cast

from ...handlers import BuiltinSupervisor, BuiltinWorker, ModelHandler, ScriptedHandler, VLLMHandler
from ...sandbox_image.text import one_line, shorten
from ..errors import TaskError
from ..service import RemoteHandler
from ..trust.hosts import origin_of

Name = TypeVar("Name", bound=str)

_MOST_SHOWN = 80
_MOST_HOSTS = 3


def models_line(models: Mapping[Name, ModelHandler | None]) -> str:
    """Return ``supervisor gpt-4.1 @ api.openai.com · worker builtin (no language model)``.

    Args:
        models: by role; None for a role that has no model.
    """
    roles: dict[str, list[str]] = {}
    for role, handler in models.items():
        roles.setdefault("none" if handler is None else model_and_place(handler), []).append(role)
    return " · ".join(f"{_listed(names)} {model}" for model, names in roles.items())


def model_and_place(handler: ModelHandler) -> str:
    """Return the model's name and where it runs."""
    model = _shown(handler.model)
    match handler:
        case BuiltinSupervisor() | BuiltinWorker():
            return "builtin (no language model)"
        case ScriptedHandler():
            return f"{model} (fixed replies)"
        case VLLMHandler():
            return f"{model} @ vLLM in this process"
        case RemoteHandler():
            # Until it connects, it does not know the model.
            name = "" if handler.model == handler.role else f"{model} "
            return f"{name}@ model server {_shown(handler.address)}"
        case _:
            places = hosts(handler)
            return f"{model} @ {', '.join(places)}" if places else f"{model} ({type(handler).__name__})"


def hosts(handler: ModelHandler) -> list[str]:
    """Return the hosts of a handler's endpoints, with a port that is not 443."""
    identity = handler.identity() or {}
    found = identity.get("base_url", handler.base_url)
    urls = cast("list[object]", found if isinstance(found, list) else [found])
    names = [_host(url) for url in urls if isinstance(url, str)]
    more = [f"{len(names) - _MOST_HOSTS} more"] if len(names) > _MOST_HOSTS else []
    return [*names[:_MOST_HOSTS], *more]


def _host(url: str) -> str:
    try:
        return str(origin_of(url))
    except TaskError:
        return _shown(url)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _shown(text: str) -> str:
    # A model's name may come from a file or a server.
    return shorten(one_line(text), _MOST_SHOWN)
