from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from supdist.engine import TaskError
from supdist.engine.model_specs import from_environment
from supdist.engine.taskfile import TaskFile, json_schema, read_task
from supdist.handlers import ModelHandler, OpenAIHandler, Price


def task(folder: Path, **changes: Any) -> Path:
    path = folder / "task.json"
    path.write_text(json.dumps({"query": "q", "context": "c", **changes}))
    return path


def context_of(task: TaskFile, folder: Path) -> object:
    return asyncio.run(task.read_context(folder)).value


def test_defaults_are_those_that_are_documented(tmp_path: Path) -> None:
    read = read_task(task(tmp_path))
    assert (read.limits.max_iterations, read.limits.output_limit, read.limits.worker_ctx_k) == (15, 2000, 8)
    assert context_of(read, tmp_path) == "c"


@pytest.mark.parametrize(
    ("name", "content", "value"),
    [
        ("a.txt", "text\r\n", "text\r\n"),
        ("a.md", "# t", "# t"),
        ("a.json", '{"k": [1, null]}', {"k": [1, None]}),
        ("a.json", '"s"', "s"),
    ],
)
def test_context_files_lie_beside_the_task(tmp_path: Path, name: str, content: str, value: object) -> None:
    (tmp_path / name).write_bytes(content.encode())
    read = read_task(task(tmp_path, context=None, context_file=name))
    assert context_of(read, tmp_path) == value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"contxt": 1}, "contxt: unknown key; did you mean `context`"),
        (
            {"limits": {"max_iteration": 1}},
            "limits.max_iteration: unknown key; did you mean `max_iterations`",
        ),
        ({"sandbox": {"memry": 1}}, "sandbox.memry: unknown key; did you mean `memory`"),
        ({"worker": {"handler": "openai", "model": "m", "temprature": 1}}, "did you mean `temperature`"),
        ({"worker": {"handler": "openai", "model": "m", "zzz": 1}}, "known are api_key_env, base_url"),
        ({"worker": {"handler": "opnai"}}, "did you mean 'openai'?"),
        ({"context_file": "x.txt"}, "a task has `context` and `context_file`; give one of them"),
        ({"context": None}, "either `context` or `context_file`"),
        ({"query": ""}, "query"),
        ({"limits": {"max_iterations": "15"}}, "limits.max_iterations"),
        ({"limits": {"max_iterations": 0}}, "limits.max_iterations"),
        ({"sandbox": {"memory": "1 byte"}}, "sandbox.memory"),
        ({"sandbox": {"timeout": -1}}, "sandbox.timeout"),
        ({"context": 5}, "context"),
    ],
)
def test_mistakes_are_named_with_their_remedy(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError) as caught:
        read_task(task(tmp_path, **changes))
    assert words in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="cannot read the task file"):
        read_task(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(TaskError, match="is not valid JSON"):
        read_task(tmp_path / "bad.json")
    for name, words in (
        ("none.txt", "cannot read"),
        ("a.bin", "a.bin: it is a binary file. What can be read: text"),
        ("n.json", "must hold"),
    ):
        (tmp_path / "a.bin").write_bytes(b"x\0\1\2")
        (tmp_path / "n.json").write_text("5")
        read = read_task(task(tmp_path, context=None, context_file=name))
        with pytest.raises(TaskError, match=words):
            context_of(read, tmp_path)


def test_the_schema_describes_what_the_reader_takes() -> None:
    schema = json_schema()
    assert set(schema["required"]) == {"query"}
    assert "$schema" in schema["properties"]
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("environ", "model", "url"),
    [
        ({"TOGETHER_API_KEY": "t"}, "meta-llama/Llama-3.3-70B-Instruct-Turbo", "https://api.together.xyz/v1"),
        (
            {"TOGETHER_API_KEY": "t", "OPENAI_API_KEY": "o", "SUPERVISOR_MODEL": "m"},
            "m",
            "https://api.together.xyz/v1",
        ),
        ({"OPENAI_API_KEY": "o"}, "gpt-4.1", "https://api.openai.com/v1"),
        ({"BASE_URL": "http://127.0.0.1:1/v1", "SUPERVISOR_MODEL": "m"}, "m", "http://127.0.0.1:1/v1"),
    ],
)
def test_the_environment_configures_an_endpoint(environ: dict[str, str], model: str, url: str) -> None:
    handler = from_environment("supervisor", environ)
    assert isinstance(handler, OpenAIHandler)
    assert (handler.model, handler.base_url) == (model, url)


def worker_of(tmp_path: Path, keys: dict[str, Any]) -> ModelHandler:
    spec = read_task(task(tmp_path, worker={"handler": "openai", "model": "m", **keys})).worker
    assert spec is not None
    return spec.build("worker", tmp_path, 8)


def test_every_key_of_an_endpoint_reaches_its_handler(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "base_url": ["http://a/v1", "http://b/v1"],
        "temperature": 0,
        "max_tokens": 7,
        "requests_per_minute": 60,
        "tokens_per_minute": 1000,
        "extra_body": {"top_k": 3},
        "extra_headers": {"X-Team": "blue"},
        "window": 8192,
        "price": {"input_usd": 1, "output_usd": 2.5},
    }
    handler = worker_of(tmp_path, keys)
    assert isinstance(handler, OpenAIHandler)
    assert (handler.base_url, handler.window, handler.max_tokens) == ("http://a/v1", 8192, 7)
    assert (handler.price, handler.samples) == (Price(1, 2.5), False)
    identity = handler.identity()
    assert (identity["base_url"], identity["extra_body"]) == (keys["base_url"], {"top_k": 3})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"price": {"input_usd": 1}}, "output_usd"),
        ({"price": {"input_usd": 1, "output_usd": -1}}, "price.output_usd"),
        ({"price": {"input_used": 1, "output_usd": 1}}, "did you mean `input_usd`"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"window": 0}, "window"),
        ({"base_url": []}, "worker: base_url"),
        ({"extra_headers": {"X": "a\nb"}}, "worker: extra_headers"),
        ({"extra_body": {"stream": True}}, "worker: extra_body"),
    ],
)
def test_mistakes_in_an_endpoint_are_named(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError) as caught:
        worker_of(tmp_path, keys)
    assert words in str(caught.value)


def test_nothing_configured_is_none_and_a_url_without_a_model_an_error() -> None:
    assert from_environment("worker", {}) is None
    with pytest.raises(TaskError, match="WORKER_MODEL"):
        from_environment("worker", {"BASE_URL": "http://127.0.0.1:1/v1"})
