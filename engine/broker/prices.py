"""Prices and windows: from the handler, else from the tables of genai-prices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from ...handlers import ModelHandler, Price, Usage
from ..errors import TaskError

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

_INPUT, _OUTPUT = ("input_mtok", "cache_read_mtok", "cache_write_mtok"), ("output_mtok",)
# Prices of things that no conversation in text has.
_NOT_TEXT = re.compile("cache|audio|image|video|document|searches")


@dataclass(frozen=True, slots=True)
class TieredPrice:
    """A price by the prompt's length: tokens and the price above them, from 0."""

    tiers: tuple[tuple[int, Price], ...]

    def of(self, usage: Usage) -> float:
        """Return the cost of one call in dollars."""
        (*_, price) = (price for start, price in self.tiers if start == 0 or usage.input_tokens > start)
        return price.of(usage)


Rate = Price | TieredPrice


# Unknown is not free: a private server costs what its owner says. The first lookup takes tenths of a second.
def price_of(handler: ModelHandler) -> Rate | None:
    """Return the price; None if unknown."""
    if handler.price is not None:
        return handler.price
    model = _find_listed_model(handler)
    return None if model is None else _rate_of(model.get_prices(datetime.now(UTC)))


def window_of(handler: ModelHandler) -> int | None:
    """Return the window in tokens; None if unknown."""
    if handler.window is not None:
        return handler.window
    model = _find_listed_model(handler)
    return None if model is None else model.context_window


# Found by endpoint too: the same name may cost something else elsewhere.
def _find_listed_model(handler: ModelHandler) -> ModelInfo | None:
    if handler.base_url is None:
        return None
    from genai_prices.data_snapshot import get_snapshot

    try:
        _, model = get_snapshot().find_provider_model(handler.model, None, None, handler.base_url)
    except LookupError:
        return None
    return model


# Never below the bill: discounts count where a usage reports them. A model that is billed by more than the
# tokens of text has no price.
def _rate_of(listed: ModelPrice) -> Rate | None:
    from genai_prices.types import TieredPrices

    rates = {name: rate for name, rate in vars(listed).items() if rate is not None}
    if not {"input_mtok", "output_mtok"} <= rates.keys():
        return None
    if any(name not in _INPUT + _OUTPUT and not _NOT_TEXT.search(name) for name in rates):
        return None

    def at(name: str, start: int) -> float | None:
        return _rate_at(rates[name], start) if name in rates else None

    def price(start: int) -> Price:
        cached = (at("cache_read_mtok", start), at("cache_write_mtok", start))
        return Price(_rate_at(rates["input_mtok"], start), _rate_at(rates["output_mtok"], start), *cached)

    tiered = [rates[name] for name in _INPUT + _OUTPUT if isinstance(rates.get(name), TieredPrices)]
    starts = sorted({0}.union(tier.start for rate in tiered for tier in rate.tiers))
    tiers = tuple((start, price(start)) for start in starts)
    return tiers[0][1] if len(tiers) == 1 else TieredPrice(tiers)


def _rate_at(rate: Decimal | TieredPrices, start: int) -> float:
    if isinstance(rate, Decimal):
        return float(rate)
    return float([rate.base, *(tier.price for tier in rate.tiers if tier.start <= start)][-1])


def unknown_price(model: str) -> TaskError:
    """Return the error of a run whose dollars are limited."""
    return TaskError(f"max_cost_usd: the price of {model} is unknown; give it as `price` of the model")
