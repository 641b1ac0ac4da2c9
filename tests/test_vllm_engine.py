"""VLLMHandler with the real vLLM, on a tiny model with random weights, on any device."""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from support import SHARED, user_messages

from supdist.handlers import Completion, ContextTooLong, Message, Rejected, VLLMHandler, call_chat_batch

MAKER = SHARED / "tools" / "make_tiny_model.py"

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(
        not MAKER.exists(), reason="../shared/tools/make_tiny_model.py is not beside this checkout"
    ),
    pytest.mark.filterwarnings("ignore"),  # vLLM, torch and transformers warn of each other
]

WINDOW = 1024
ENGINE = {
    "enforce_eager": True,
    "kv_cache_memory_bytes": 256 << 20,
    "enable_chunked_prefill": False,
    "disable_log_stats": False,
}


@pytest.fixture(scope="module")
async def handler(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[VLLMHandler]:
    """Loaded once; answers without an end of their own, as long as the window allows."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    subprocess.run([sys.executable, MAKER, folder], check=True, stdout=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as environment:
        for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS"):
            environment.setenv(name, "1")
        async with VLLMHandler(
            str(folder), temperature=0, max_model_len=WINDOW, engine_args=ENGINE
        ) as handler:
            yield handler
    del handler
    gc.collect()  # vLLM leaves a ZeroMQ context to the collector; its warning belongs here


def leaving(handler: VLLMHandler, room: int, end: str = "") -> list[Message]:
    """A conversation that leaves room for so many tokens in the window."""
    low, high = 0, WINDOW * 4
    while low < high:
        middle = (low + high + 1) // 2
        count = handler.count_tokens(user_messages("a " * middle + end))
        assert count is not None
        low, high = (middle, high) if count <= WINDOW - room else (low, middle - 1)
    messages = user_messages("a " * low + end)
    assert handler.count_tokens(messages) == WINDOW - room
    return messages


def requests_in_engine() -> dict[str, float]:
    """How many it computes, and how many wait, as it said with its last step."""
    reader: Any = importlib.import_module("vllm.v1.metrics.reader")
    names = {"vllm:num_requests_running": "running", "vllm:num_requests_waiting": "waiting"}
    return {names[each.name]: each.value for each in reader.get_metrics_snapshot() if each.name in names}


async def test_an_answer_comes_with_its_usage_and_says_that_it_was_cut(handler: VLLMHandler) -> None:
    messages = leaving(handler, 5)
    answer = await handler.chat(messages)
    assert answer.text
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.calls) == (WINDOW - 5, 5, 1)
    assert answer.finish_reason == "length"


async def test_what_leaves_no_room_is_too_long_to_the_token(handler: VLLMHandler) -> None:
    assert handler.window == WINDOW
    assert (await handler.chat(leaving(handler, 1))).usage.output_tokens == 1
    with pytest.raises(ContextTooLong, match="1024 tokens; the window"):
        await handler.chat(leaving(handler, 0))


async def test_greedy_answers_are_the_same_alone_and_in_company_in_their_order(handler: VLLMHandler) -> None:
    ends = [100 * f"{word} " for word in ("north", "south", "east", "west")]
    chats = [leaving(handler, 8, end) for end in ends]
    alone = [(await handler.chat(messages)).text for messages in chats]
    again = [(await handler.chat(messages)).text for messages in chats]
    together = await call_chat_batch(handler, [*chats, leaving(handler, 0)])
    assert len(set(alone)) == len(chats)
    assert again == alone
    assert [each.text for each in together[:-1] if isinstance(each, Completion)] == alone
    assert isinstance(together[-1], ContextTooLong)


async def test_cancelled_requests_leave_the_engine(handler: VLLMHandler) -> None:
    tasks = [asyncio.ensure_future(handler.chat(user_messages(f"number {each}"))) for each in range(64)]
    await handler.chat(leaving(handler, 2, "while they run"))
    assert requests_in_engine()["running"] > 0
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in ended)
    await handler.chat(leaving(handler, 1, "afterwards"))
    assert requests_in_engine() == {"running": 0, "waiting": 0}


async def test_text_that_has_no_utf8_is_rejected_and_harms_nobody(handler: VLLMHandler) -> None:
    broken = user_messages("\ud800")
    assert handler.count_tokens(broken) is None
    with pytest.raises(Rejected, match="does not take this"):
        await handler.chat(broken)
    assert (await handler.chat(leaving(handler, 1))).text


async def test_an_argument_that_vllm_does_not_know_is_rejected_when_it_is_entered(
    handler: VLLMHandler,
) -> None:
    with pytest.raises(Rejected, match=r"did not start.*nonsense"):
        await VLLMHandler(handler.model, engine_args={"nonsense": 1}).__aenter__()


def test_the_variables_that_the_handler_sets_are_known_to_vllm() -> None:
    known: Any = importlib.import_module("vllm.envs").environment_variables
    assert {"VLLM_WORKER_MULTIPROC_METHOD", "VLLM_LOGGING_STREAM"} <= known.keys()
