"""Prices are the handler's, else the tables', never guessed, and never below the bill."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import genai_prices
import pytest
from genai_prices.data_snapshot import DataSnapshot, get_snapshot, set_custom_snapshot
from genai_prices.types import ClauseEquals, ModelInfo, ModelPrice, Provider, Tier, TieredPrices

from supdist.engine.broker.prices import TieredPrice, price_of, window_of
from supdist.handlers import (
    BuiltinSupervisor,
    BuiltinWorker,
    ModelHandler,
    OpenAIHandler,
    Price,
    ScriptedHandler,
    Usage,
    VLLMHandler,
)

URL = "https://api.example.com/v1"


def tiered(base: str, **starting: str) -> TieredPrices:
    tiers = [Tier(int(start.removeprefix("at_")), Decimal(price)) for start, price in starting.items()]
    return TieredPrices(Decimal(base), tiers)


PRICES: dict[str, ModelPrice] = {
    "plain": ModelPrice(input_mtok=Decimal(2), output_mtok=Decimal(8)),
    "discounts": ModelPrice(
        input_mtok=Decimal(2),
        output_mtok=Decimal(8),
        cache_read_mtok=Decimal("0.5"),
        input_audio_mtok=Decimal(100),
        web_searches_kcount=Decimal(10),
    ),
    "writes-cost-more": ModelPrice(
        input_mtok=Decimal(2), output_mtok=Decimal(8), cache_write_mtok=Decimal("2.5")
    ),
    "tiers": ModelPrice(
        input_mtok=tiered("1", at_100="2", at_300="4"), output_mtok=tiered("10", at_200="15")
    ),
    "by-request": ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(1), requests_kcount=Decimal(12)),
    "by-something-new": ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(1), moonlight=Decimal(1)),
    "reads-alone": ModelPrice(input_mtok=Decimal(1)),
    "nothing": ModelPrice(),
}


@pytest.fixture
def tables() -> Iterator[None]:
    models = [
        ModelInfo(name, ClauseEquals(name), context_window=1000, prices=price)
        for name, price in PRICES.items()
    ]
    provider = Provider("example", "Example", r"https://api\.example\.com", models=models)
    set_custom_snapshot(DataSnapshot([provider], from_auto_update=False))
    yield
    set_custom_snapshot(None)


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("plain", Price(2, 8)),
        ("discounts", Price(2, 8, cache_read_usd=0.5)),
        ("writes-cost-more", Price(2, 8, cache_write_usd=2.5)),
        ("by-request", None),
        ("by-something-new", None),
        ("reads-alone", None),
        ("nothing", None),
        ("unlisted", None),
    ],
)
def test_a_price_is_read_without_discounts_and_only_where_it_is_by_tokens_alone(
    model: str, price: Price | None
) -> None:
    assert price_of(OpenAIHandler(model, base_url=URL)) == price


@pytest.mark.usefixtures("tables")
def test_a_long_prompt_pays_its_tier_for_all_of_its_tokens() -> None:
    price = price_of(OpenAIHandler("tiers", base_url=URL))
    assert isinstance(price, TieredPrice)
    million = [price.of(Usage(tokens, 1000, 1)) * 1e6 for tokens in (0, 100, 101, 200, 201, 300, 301)]
    assert million == pytest.approx([10_000, 10_100, 10_202, 10_400, 15_402, 15_600, 16_204])


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:8000/v1", "http://10.0.0.1/v1", "https://elsewhere.example.net/v1", "", "not a url"],
)
def test_an_endpoint_that_is_not_listed_has_no_price_whatever_its_model_is_called(url: str) -> None:
    handler = ScriptedHandler([], model="plain")
    handler.price, handler.base_url = None, url
    assert price_of(handler) is None
    assert window_of(handler) is None


@pytest.mark.usefixtures("tables")
def test_what_the_handler_says_comes_first() -> None:
    handler = OpenAIHandler("plain", base_url=URL)
    assert window_of(handler) == 1000
    handler.price, handler.window = Price(0, 1), 4096
    assert price_of(handler) == Price(0, 1)
    assert window_of(handler) == 4096


@pytest.mark.parametrize(
    "handler", [ScriptedHandler([]), BuiltinSupervisor(), BuiltinWorker(), VLLMHandler("any")]
)
def test_what_runs_here_costs_nothing(handler: ModelHandler) -> None:
    assert price_of(handler) == Price(0, 0)


def test_a_handler_that_says_nothing_has_an_unknown_price() -> None:
    handler = ScriptedHandler([], model="gpt-4.1")
    handler.price = None
    assert price_of(handler) is None


def test_a_default_model_has_a_price_and_a_window_in_the_installed_tables() -> None:
    handler = OpenAIHandler("gpt-4.1")
    assert isinstance(price_of(handler), Price)
    assert (window_of(handler) or 0) > 100_000


USES: list[dict[str, Any]] = [
    {"input_tokens": 1000, "output_tokens": 50},
    {"input_tokens": 250_000, "output_tokens": 0},
    {"input_tokens": 10**6, "output_tokens": 10**5, "cache_read_tokens": 10**6 - 10},
    {"input_tokens": 1000, "output_tokens": 50, "cache_write_tokens": 900},
]


def listed() -> list[tuple[Provider, ModelInfo]]:
    set_custom_snapshot(None)
    return [(provider, model) for provider in get_snapshot().providers for model in provider.models]


@pytest.mark.usefixtures("tables")
def test_no_price_in_the_installed_tables_is_read_below_the_bill() -> None:
    """Against the package's own calculation, of every model that it lists."""
    known = 0
    handler = ScriptedHandler([])
    handler.price, handler.base_url = None, URL
    for provider, model in listed():
        handler.model = model.id
        alone = Provider("one", "One", ".*", models=[model])
        set_custom_snapshot(DataSnapshot([alone], from_auto_update=False))
        rate = price_of(handler)
        if rate is None:
            continue
        known += 1
        for use in USES:
            bill = float(model.calc_price(genai_prices.Usage(**use), provider).total_price)
            assert rate.of(Usage(use["input_tokens"], use["output_tokens"], 1)) >= bill * (1 - 1e-9)
    assert known > 1000


def test_looking_a_price_up_asks_nobody() -> None:
    program = """
import sys
def hook(event, args):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        raise SystemExit(f"{event} {args}")
sys.addaudithook(hook)
import threading
from supdist.engine.broker.prices import price_of
from supdist.handlers import OpenAIHandler
assert price_of(OpenAIHandler("gpt-4.1")) is not None
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("usage", "dollars"),
    [
        # Not reported: the most it can cost.
        (Usage(1000, 100, 1), 0.0050),
        (Usage(1000, 100, 1, cache_read_tokens=0, cache_write_tokens=0), 0.0040),
        (Usage(1000, 100, 1, cache_read_tokens=900, cache_write_tokens=0), 0.00157),
        (Usage(1000, 100, 1, cache_read_tokens=0, cache_write_tokens=800), 0.0048),
        # Reads alone are reported: the rest may have been written.
        (Usage(1000, 100, 1, cache_read_tokens=900), 0.00167),
    ],
)
def test_cached_tokens_cost_what_the_provider_bills_for_them(usage: Usage, dollars: float) -> None:
    price = Price(3, 10, cache_read_usd=0.3, cache_write_usd=4)
    assert price.of(usage) == pytest.approx(dollars)
