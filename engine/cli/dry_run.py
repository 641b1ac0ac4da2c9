"""Print what a run would use and may cost, and send nothing."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence

from ...handlers import ModelHandler, Usage
from ...sandbox_image.text import printable
from ..broker.prices import Rate, price_of, unknown_price
from ..documents import Context
from ..model_specs import ModelSpec, OpenAISpec
from ..native_specs import NativeSpec
from ..trust import Bound
from .documents import print_warnings
from .work import Work

# Bytes of English text in a token.
_TOKEN_BYTES = 4
NO_BOUND = "no bound is known: give --max-cost-usd"


async def describe(work: Work, read_context: Callable[[], Awaitable[Context]]) -> str:
    """Return the lines.

    Raises:
        TaskError: a model, the context or an option is wrong.
    """
    context, config = print_warnings(await read_context()), work.config()
    handlers = work.models.local_handlers(work.folder, work.task.limits.worker_ctx_k, work.permissions)
    lines: list[str] = []
    for role, handler in handlers.items():
        lines += model_lines(role, handler, work.models.specs.get(role), work.permissions)
    if work.models.server is not None:
        lines.append(f"model server: {work.models.server}; it was not asked which models it has")
    lines.append(f"context: {_context(context)}")
    sandbox = work.task.sandbox
    lines.append(f"sandbox: {sandbox.backend}, isolation {sandbox.isolation}, not opened")
    lines.append(f"turns: {config.max_iterations} at most")
    if config.max_cost_usd is not None and work.models.server is None:
        # As the run itself would.
        for handler in handlers.values():
            if price_of(handler) is None:
                raise unknown_price(handler.model)
    free_or_priced = [] if work.models.server is not None else list(handlers.values())
    most = most_dollars(config.max_cost_usd, config.max_tokens, free_or_priced)
    lines.append(f"cost: {NO_BOUND if most is None else f'at most ${most:,.4f}' if most else 'nothing'}")
    lines.append("Nothing was sent.")
    return printable("\n".join(lines))


def model_lines(name: str, handler: ModelHandler, spec: ModelSpec | None, permissions: Bound) -> list[str]:
    """Return the lines of one model: where it runs, its key, its price."""
    from .model_line import model_and_place

    return [
        f"{name}: {model_and_place(handler)}",
        f"  key: {_key(name, spec, permissions)}",
        f"  price: {_price(handler)}",
    ]


def _key(role: str, spec: ModelSpec | None, permissions: Bound) -> str:
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


def most_dollars(dollars: float | None, tokens: int | None, handlers: Sequence[ModelHandler]) -> float | None:
    """Return what a run may cost at most; None if no bound is known.

    Args:
        dollars: the limit of the run.
        tokens: the limit of the run.
        handlers: all models; empty if some are unknown.
    """
    rates = [price_of(handler) for handler in handlers]
    known = [rate for rate in rates if rate is not None]
    is_known = bool(rates) and len(known) == len(rates)
    bounds = [] if dollars is None else [dollars]
    if tokens is not None and is_known:
        # All tokens at the dearest rate of all models.
        kinds = (Usage(input_tokens=tokens), Usage(output_tokens=tokens))
        bounds.append(max(rate.of(kind) for rate in known for kind in kinds))
    if is_known and all(map(_is_free, known)):
        bounds.append(0.0)
    return min(bounds, default=None)


def _is_free(rate: Rate) -> bool:
    return rate.of(Usage(input_tokens=1_000_000, output_tokens=1_000_000)) == 0
