"""What a model's tokens cost, and how long its window is: from its handler, else from the tables of genai-prices.

The tables travel with the installed package; nothing is fetched. A model is looked up at its endpoint alone: what
the same name costs elsewhere says nothing, and an endpoint that the tables do not know has no price. A price that
is not known is None, which is not the same as nothing: a server of one's own costs what its owner says.

Of the tables' prices the reading is taken that is never below the bill: the rates of this moment without any
discount (batches, parts of a prompt that the endpoint has cached), and, where an endpoint asks more for tokens
that it caches than for others, that. A model that is billed by more than its text's tokens has no price here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from ...handlers import ModelHandler, Price, Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

_INPUT, _OUTPUT = ("input_mtok", "cache_read_mtok", "cache_write_mtok"), ("output_mtok",)
_NOT_OURS = re.compile("cache|audio|image|video|document|searches")
"""Prices of what no conversation in text has."""


@dataclass(frozen=True, slots=True)
class TieredPrice:
    """A price that depends on the length of the prompt: the highest tier that it passes is paid for all of its tokens.

    Attributes:
        tiers: tokens of a prompt and the price of longer ones, ascending, the first from none.
    """

    tiers: tuple[tuple[int, Price], ...]

    def of(self, usage: Usage) -> float:
        """What one call costs, in dollars."""
        (*_, price) = (price for start, price in self.tiers if start == 0 or usage.input_tokens > start)
        return price.of(usage)


Rate = Price | TieredPrice


def price_of(handler: ModelHandler) -> Rate | None:
    """What the handler's tokens cost; None where nobody knows.

    The first look at the tables takes some tenths of a second.
    """
    if handler.price is not None:
        return handler.price
    model = _listed(handler)
    return None if model is None else _rate(model.get_prices(datetime.now(UTC)))


def window_of(handler: ModelHandler) -> int | None:
    """The handler's window in tokens; None where nobody knows.

    The tables round, and grow old: they can be some percent too low, or say what the model had a year ago. That
    is good enough to plan with, and no reason to refuse a prompt.
    """
    if handler.window is not None:
        return handler.window
    model = _listed(handler)
    return None if model is None else model.context_window


def _listed(handler: ModelHandler) -> ModelInfo | None:
    if handler.base_url is None:
        return None
    from genai_prices.data_snapshot import get_snapshot

    try:
        _, model = get_snapshot().find_provider_model(handler.model, None, None, handler.base_url)
    except LookupError:
        return None
    return model


def _rate(listed: ModelPrice) -> Rate | None:
    from genai_prices.types import TieredPrices

    rates = {name: rate for name, rate in vars(listed).items() if rate is not None}
    if not {"input_mtok", "output_mtok"} <= rates.keys():
        return None
    if any(name not in _INPUT + _OUTPUT and not _NOT_OURS.search(name) for name in rates):
        return None

    def at(names: tuple[str, ...], start: int) -> float:
        return max(_at(rates[name], start) for name in names if name in rates)

    tiered = [rates[name] for name in _INPUT + _OUTPUT if isinstance(rates.get(name), TieredPrices)]
    starts = sorted({0}.union(tier.start for rate in tiered for tier in rate.tiers))
    tiers = tuple((start, Price(at(_INPUT, start), at(_OUTPUT, start))) for start in starts)
    return tiers[0][1] if len(tiers) == 1 else TieredPrice(tiers)


def _at(rate: Decimal | TieredPrices, start: int) -> float:
    """A price in the tier that begins at ``start``."""
    if isinstance(rate, Decimal):
        return float(rate)
    return float([rate.base, *(tier.price for tier in rate.tiers if tier.start <= start)][-1])
