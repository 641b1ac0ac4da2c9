"""What can be said of VLLMHandler without vLLM; with it, see ``test_vllm_engine.py``."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from supdist.handlers import Message, Rejected, VLLMHandler

pytestmark = pytest.mark.anyio

without_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here"
)
ONE: list[Message] = [{"role": "user", "content": "x"}]


@without_vllm
async def test_without_vllm_the_remedy_is_named() -> None:
    with pytest.raises(Rejected, match=r"pip install 'supdist-engine\[vllm\]'"):
        await VLLMHandler("some/model").chat(ONE)


@without_vllm
async def test_entering_says_at_once_what_is_missing_and_may_be_tried_again() -> None:
    handler = VLLMHandler("some/model")
    for _ in range(2):
        with pytest.raises(Rejected, match="not installed"):
            await handler.__aenter__()


@without_vllm
async def test_vllm_logs_to_stderr_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for set_by_user, stream in ((None, "ext://sys.stderr"), ("ext://sys.stdout", "ext://sys.stdout")):
        monkeypatch.setenv("VLLM_LOGGING_STREAM", set_by_user or "")
        if set_by_user is None:
            monkeypatch.delenv("VLLM_LOGGING_STREAM")
        monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        with pytest.raises(Rejected):
            await VLLMHandler("some/model").chat(ONE)
        assert os.environ["VLLM_LOGGING_STREAM"] == stream


def test_making_one_loads_nothing() -> None:
    assert VLLMHandler("some/model", engine_args={"enforce_eager": True}).model == "some/model"


def test_before_the_engine_has_told_nothing_is_guessed() -> None:
    handler = VLLMHandler("some/model")
    assert (handler.window, handler.max_tokens, handler.count_tokens(ONE)) == (None, None, None)


@pytest.mark.parametrize(
    ("length", "window"),
    [
        ({"max_model_len": 1024}, 1024),
        ({"engine_args": {"max_model_len": 512}}, 512),
        ({"engine_args": {"max_model_len": -1}}, None),
        ({"engine_args": {"max_model_len": "32k"}}, None),
    ],
)
def test_a_window_that_was_given_is_known_at_once(length: dict[str, object], window: int | None) -> None:
    assert VLLMHandler("m", **length).window == window  # pyright: ignore[reportArgumentType]  # options of several types


@pytest.mark.parametrize(("temperature", "samples"), [(None, True), (0.7, True), (0, False), (0.0, False)])
def test_it_samples_unless_the_temperature_is_nothing(temperature: float | None, samples: bool) -> None:
    assert VLLMHandler("m", temperature=temperature, max_tokens=5).samples is samples


def test_what_decides_an_answer_is_in_the_identity() -> None:
    ways = [
        VLLMHandler("m"), VLLMHandler("n"), VLLMHandler("m", temperature=0), VLLMHandler("m", max_tokens=9),
        VLLMHandler("m", max_model_len=99), VLLMHandler("m", engine_args={"dtype": "half"}),
    ]  # fmt: skip
    found = [str(way.identity()) for way in ways]
    assert len(set(found)) == len(ways)
    assert VLLMHandler("m").identity() == VLLMHandler("m").identity()


def test_an_identity_holds_no_token_and_is_none_where_it_cannot_be_told() -> None:
    assert "secret" not in str(VLLMHandler("m", engine_args={"hf_token": "secret"}).identity())
    assert VLLMHandler("m", engine_args={"logits_processors": [object()]}).identity() is None


def test_a_folder_is_the_same_model_by_any_of_its_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert VLLMHandler("model").identity() == VLLMHandler(str(tmp_path / "model")).identity()
