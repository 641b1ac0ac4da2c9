"""Print what a run would use and may cost, and send nothing."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping

from ...handlers import ModelHandler, Usage
from ...sandbox_image.text import printable
from ..broker.prices import Rate, price_of
from ..documents import Context
from ..model_specs import ModelSpec, OpenAISpec, Role
from ..native_specs import NativeSpec
from ..trust import Bound
from .documents import print_warnings
from .work import Work

# Bytes of English text in a token.
_TOKEN_BYTES = 4
_NO_BOUND = "no bound is known: give --max-cost-usd"


async def describe(work: Work, read_context: Callable[[], Awaitable[Context]]) -> str:
    """Return the lines.

    Raises:
        TaskError: a model, the context or an option is wrong.
    """
    from .model_line import model_and_place

    context, config = print_warnings(await read_context()), work.config()
    handlers = work.models.local_handlers(work.folder, work.task.limits.worker_ctx_k, work.permissions)
    lines: list[str] = []
    for role, handler in handlers.items():
        lines.append(f"{role}: {model_and_place(handler)}")
        lines.append(f"  key: {_key(role, work.models.specs.get(role), work.permissions)}")
        lines.append(f"  price: {_price(handler)}")
    if work.models.server is not None:
        lines.append(f"model server: {work.models.server}; it was not asked which models it has")
    lines.append(f"context: {_context(context)}")
    sandbox = work.task.sandbox
    lines.append(f"sandbox: {sandbox.backend}, isolation {sandbox.isolation}, not opened")
    lines.append(f"turns: {config.max_iterations} at most")
    lines.append(f"cost: {_most(config.max_cost_usd, config.max_tokens, handlers, work.models.server)}")
    lines.append("Nothing was sent.")
    return printable("\n".join(lines))


def _key(role: Role, spec: ModelSpec | None, permissions: Bound) -> str:
    if not isinstance(spec, OpenAISpec | NativeSpec):
        return "none"
    _, keys = spec.endpoint(role, permissions)
    names = keys.values() if isinstance(keys, Mapping) else [keys]
    return ", ".join(dict.fromkeys(map(_state, filter(None, names)))) or "none"


def _state(name: str) -> str:
    return f"{name} ({'set' if os.environ.get(name, '').strip() else 'missing'})"


def _price(handler: ModelHandler) -> str:
    rate = price_of(handler)
    if rate is None:
        return "unknown"
    per_million = [
        rate.of(usage) for usage in (Usage(input_tokens=1_000_000), Usage(output_tokens=1_000_000))
    ]
    return f"${per_million[0]:,.4g} in, ${per_million[1]:,.4g} out for a million tokens"


def _context(context: object) -> str:
    import json

    text = context if isinstance(context, str) else json.dumps(context, ensure_ascii=False)
    size = len(text.encode("utf-8", "surrogatepass"))
    return f"about {size // _TOKEN_BYTES:,} tokens, {len(text):,} characters"


def _most(
    dollars: float | None, tokens: int | None, handlers: Mapping[Role, ModelHandler], server: str | None
) -> str:
    rates = [price_of(handler) for handler in handlers.values()]
    bounds = [] if dollars is None else [dollars]
    if tokens is not None and server is None and all(rate is not None for rate in rates):
        # All tokens at the dearest rate of both models.
        kinds = (Usage(input_tokens=tokens), Usage(output_tokens=tokens))
        bounds.append(max(rate.of(kind) for rate in rates if rate is not None for kind in kinds))
    if not bounds and server is None and all(rate is not None and _is_free(rate) for rate in rates):
        return "nothing"
    return f"at most ${min(bounds):,.4f}" if bounds else _NO_BOUND


def _is_free(rate: Rate) -> bool:
    return rate.of(Usage(input_tokens=1_000_000, output_tokens=1_000_000)) == 0
