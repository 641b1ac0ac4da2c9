"""Models by a short name: ``PRESET/MODEL``, such as ``ollama/qwen3:8b``; ``builtin`` has no model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..handlers.openai_options import TOGETHER_URL
from ..sandbox_image.text import one_line, shorten
from .errors import TaskError
from .trust.hosts import keys_of, origin_of
from .trust.servers import SERVERS

BUILTIN = "builtin"
NO_KEY = "none"
"""As ``api_key_env``: no key is sent."""

_MOST_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider of models.

    Attributes:
        handler: the handler of its specification.
        base_url: its endpoint; None for the default of the handler.
        key: the variable of its key; None for the default of the handler.
    """

    handler: str = "openai"
    base_url: str | None = None
    key: str | None = None


# With the default endpoint of OpenAI, OPENAI_BASE_URL counts, as for its SDK.
PROVIDERS: Mapping[str, Provider] = {
    "openai": Provider(),
    "together": Provider(base_url=TOGETHER_URL, key="TOGETHER_API_KEY"),
    "openrouter": Provider(base_url="https://openrouter.ai/api/v1", key="OPENROUTER_API_KEY"),
    "anthropic": Provider(handler="anthropic"),
    "gemini": Provider(handler="gemini"),
}

PRESETS = (*SERVERS, *PROVIDERS)

# Names of models by which people know a provider.
_FAMILIES = {
    "gpt-": "openai", "chatgpt": "openai", "o1": "openai", "o3": "openai", "o4": "openai",
    "claude": "anthropic", "gemini": "gemini",
}  # fmt: skip
_OTHER_NAMES = {"google": "gemini", "claude": "anthropic", "chatgpt": "openai"}


def is_preset(text: str) -> bool:
    """Return whether a text begins with a known preset."""
    preset, slash, model = text.partition("/")
    return bool(slash and model.strip()) and preset in PRESETS


def fields_of(text: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of the specification that a short name stands for.

    Args:
        environ: may move a local server, and holds its key.

    Raises:
        TaskError: the name or the address is wrong.
    """
    text = text.strip()
    if text == BUILTIN:
        return {"handler": BUILTIN}
    preset, slash, model = text.partition("/")
    if preset not in PRESETS or not slash:
        raise TaskError(_unknown(text, preset, model if slash else None))
    if not model.strip():
        raise TaskError(f"{shorten(one_line(text), _MOST_SHOWN)!r} names no model: write {preset}/MODEL")
    if preset in SERVERS:
        return _at_server(preset, model, environ)
    provider = PROVIDERS[preset]
    found = {"handler": provider.handler, "model": model, "base_url": provider.base_url}
    return {name: value for name, value in (found | {"api_key_env": provider.key}).items() if value}


def _at_server(preset: str, model: str, environ: Mapping[str, str]) -> dict[str, Any]:
    server = SERVERS[preset]
    url = server.url(environ)
    origin = origin_of(url)
    key = server.key if server.key and environ.get(server.key, "").strip() else NO_KEY
    # The server was moved to a known provider, such as ollama.com: it wants the key of that provider.
    if not origin.is_loopback and (own := keys_of(origin)):
        key = own[0]
    return {"handler": "openai", "model": model, "base_url": url, "api_key_env": key, "server": preset}


def _unknown(text: str, preset: str, model: str | None) -> str:
    shown = shorten(one_line(text), _MOST_SHOWN)
    known = f"Use one of {BUILTIN}, {', '.join(f'{each}/MODEL' for each in PRESETS)}"
    if model is None:
        near = _whole_name(shown)
        return f"{shown!r} names no provider{f'; did you mean {near}?' if near else '.'} {known}"
    lower = preset.lower()
    found = _OTHER_NAMES.get(lower) or next(iter(difflib.get_close_matches(lower, PRESETS, n=1)), None)
    # Else it may be the name of a model at a hub, such as Qwen/Qwen3-8B.
    near = f"vllm/{shown}" if found is None else f"{found}/{shorten(one_line(model), _MOST_SHOWN)}"
    which = ", if a vLLM server has it" if found is None else ""
    return f"{shown!r} begins with no known preset; did you mean {near}{which}? {known}"


def _whole_name(model: str) -> str | None:
    if difflib.get_close_matches(model.lower(), (BUILTIN,), n=1):
        return BUILTIN
    family = next((preset for start, preset in _FAMILIES.items() if model.startswith(start)), None)
    # Only Ollama's names have a colon.
    family = family or ("ollama" if ":" in model else None)
    return f"{family}/{model}" if family else None
