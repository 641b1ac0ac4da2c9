"""The options of a run: one place for each, and one clear line for a wrong value."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast, get_type_hints

import numpy as np
import pytest

from supdist.engine import (
    HostTool,
    Prompts,
    RunConfig,
    RunLimits,
    Sandbox,
    SandboxConfig,
    SandboxRuntime,
    SyncSandbox,
    TaskError,
    Tool,
    open_sandbox,
    run,
)
from supdist.engine.api import RunOptions, arun
from supdist.engine.broker.budget import BudgetLimits
from supdist.engine.broker.cache import ResponseCache
from supdist.engine.config import options
from supdist.engine.events import Event
from supdist.engine.taskfile import TaskFile, TaskLimits
from supdist.handlers import ModelHandler, ScriptedHandler

NAMES = {
    "Callable": Callable, "Event": Event, "Mapping": Mapping, "ModelHandler": ModelHandler,
    "Prompts": Prompts, "ResponseCache": ResponseCache, "SandboxConfig": SandboxConfig, "Tool": Tool,
}  # fmt: skip


class _Path:
    """A PathLike that gives what it was made with."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __fspath__(self) -> Any:
        return self.value


async def _async_function(_: object) -> None:
    """Do nothing."""


class _AsyncCallable:
    async def __call__(self, _: object) -> None:
        """Do nothing."""


WHOLE: list[tuple[object, str]] = [
    ("15", "the text '15'; give the number without quotes"),
    (True, "not True"),
    (1.0, "not 1.0"),
    (math.nan, "not nan"),
    (0, "not 0"),
    (-1, "not -1"),
    ([1], "not a list"),
    (int, "not the class int"),
]
NUMBER: list[tuple[object, str]] = [
    ("0.5", "the text '0.5'; give the number without quotes"),
    (True, "not True"),
    (math.nan, "a finite number"),
    (math.inf, "a finite number"),
    (-math.inf, "a finite number"),
    (10**400, "a finite number"),
    (0, "not 0"),
    (-0.5, "not -0.5"),
    ({}, "not a dict"),
]
FLAG: list[tuple[object, str]] = [
    ("true", "True or False, not the text 'true'"),
    (1, "not 1"),
    (0.0, "not 0.0"),
    (None, "not None"),
]
PATH: list[tuple[object, str]] = [
    (5, "a path"),
    (b"logs", "not a bytes"),
    (_Path(b"logs"), "os.fsdecode"),
    ("", "not empty"),
    ("a\0b", "NUL"),
    (["logs"], "not a list"),
]
WRONG: dict[str, list[tuple[object, str]]] = {
    "max_iterations": [*WHOLE, (None, "not None"), (10_001, "of at least 1 and at most 10,000, not 10001")],
    "output_limit": [*WHOLE, (None, "not None")],
    "worker_ctx_k": [*WHOLE, (None, "not None")],
    "max_worker_calls": WHOLE,
    "max_tokens": WHOLE,
    "log_bytes": [("lots", """text such as "512MiB" or None, not the text 'lots'"""), *WHOLE[1:]],
    "max_cost_usd": NUMBER,
    "max_seconds": NUMBER,
    "call_seconds": [*NUMBER, (math.inf, "use None for no limit")],
    "final_seconds": [*NUMBER, (None, "not None")],
    "sandbox": [
        ({"memory": "1GiB"}, "not a dict; give SandboxConfig("),
        ("docker", "not the text 'docker'"),
        (object.__new__(Sandbox), "not a Sandbox; a run opens its own sandbox"),
        (object.__new__(SyncSandbox), "not a SyncSandbox; a run opens its own sandbox"),
        (SandboxConfig, "not the class SandboxConfig"),
    ],
    "cache": [
        ({}, '"run", "off", a path or a ResponseCache, not a dict'),
        (True, "not True"),
        (None, "not None"),
        ("", "not empty"),
        (_Path(b"x"), "os.fsdecode"),
    ],
    "cache_sampled": FLAG,
    "cache_counts": FLAG,
    "log_dir": PATH,
    "on_event": [
        ("print", "a function of one event"),
    ],
    "prompts": [
        ("Answer.", "give Prompts(system=...)"),
        ({"system": "x"}, "not a dict"),
        (Path("prompts"), "from_directory"),
    ],
    "tools": [
        ([len], "a dict of functions by name or None, not a list"),
        (len, 'give {"name": function}'),
        ("tools:record", "not the text"),
    ],
}
RIGHT: dict[str, list[object]] = {
    "max_iterations": [1, 10_000, np.int64(3)],
    "output_limit": [1, 10**12],
    "worker_ctx_k": [1, 1000],
    "max_worker_calls": [1, None],
    "max_tokens": [1, None],
    "log_bytes": [1, None],
    "max_cost_usd": [1, 1e-9, None, np.float32(0.5)],
    "max_seconds": [1, 0.001, None],
    "call_seconds": [1, 0.5, None],
    "final_seconds": [1, 0.5],
    "sandbox": [SandboxConfig(memory="1GiB"), None],
    "cache": ["run", "off", "answers.sqlite", Path("answers.sqlite"), ResponseCache()],
    "cache_sampled": [True, False],
    "cache_counts": [True, False],
    "log_dir": ["logs", Path("logs"), None],
    "on_event": [print, _async_function, _AsyncCallable(), None],
    "prompts": [Prompts(), None],
    "tools": [{}, {"length": len, "record": HostTool(len)}, None],
}


def ask(**arguments: Any) -> object:
    whole: dict[str, Any] = {
        "query": "q",
        "context": "c",
        "supervisor": ScriptedHandler(["x"]),
        "worker": None,
        **arguments,
    }
    return run(**whole)


@pytest.mark.parametrize("name", options())
def test_a_wrong_value_is_one_line_that_says_what_is_expected(name: str) -> None:
    assert WRONG[name]
    for value, words in WRONG[name]:
        for wrong in (lambda v=value: RunConfig.from_mapping({name: v}), lambda v=value: ask(**{name: v})):
            with pytest.raises(TaskError) as caught:
                wrong()
            message = str(caught.value)
            assert message.startswith(f"{name} must be "), message
            assert words in message
            assert "\n" not in message
            assert len(message) < 200


@pytest.mark.parametrize("name", options())
def test_right_values_are_kept(name: str) -> None:
    for value in RIGHT[name]:
        assert getattr(RunConfig.from_mapping({name: value}), name) == value


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"query": None}, "query must be text, not None"),
        ({"query": " "}, "query is empty"),
        ({"supervisor": "gpt-4o"}, "supervisor: 'gpt-4o' names no provider; did you mean openai/gpt-4o?"),
        ({"supervisor": None}, "supervisor must be a ModelHandler, not None"),
        ({"supervisor": ScriptedHandler}, "not the class ScriptedHandler"),
        ({"supervisor": len}, "for a function: supdist.handlers.ScriptedHandler(function)"),
        ({"worker": "gpt-4o"}, "worker: 'gpt-4o' names no provider; did you mean openai/gpt-4o?"),
        ({"limits": {"max_tokens": 5}}, "limits must be a RunLimits or None, not a dict; give RunLimits("),
        ({"limits": BudgetLimits()}, "not a BudgetLimits"),
        ({"config": {"max_tokens": 5}}, "config must be a RunConfig or None, not a dict"),
        ({"max_itertions": 5}, "unknown option max_itertions; did you mean max_iterations?"),
        ({"zzz": 5}, "unknown option zzz; known are max_iterations, "),
        ({"max_tokens": 1, "config": RunConfig(max_tokens=2)},
            "max_tokens is given twice: in config and as max_tokens="),
        ({"max_iterations": 1, "config": RunConfig(max_iterations=2)}, "max_iterations is given twice"),
        ({"max_tokens": 1, "limits": RunLimits(max_tokens=2)},
            "max_tokens is given twice: in limits and as max_tokens="),
        ({"limits": RunLimits(max_tokens=2), "config": RunConfig(max_tokens=2)}, "max_tokens is given twice"),
        ({"config": RunConfig(), "max_itertions": 1}, "unknown option max_itertions"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_a_run_are_one_clear_line(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError) as caught:
        ask(**arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_keyword_joins_a_config_that_leaves_it_at_its_default() -> None:
    joined = RunConfig(max_tokens=5).override({"max_seconds": 2})
    assert (joined.max_tokens, joined.max_seconds) == (5, 2.0)


def test_long_and_hostile_values_stay_short_and_on_one_line() -> None:
    with pytest.raises(TaskError) as caught:
        RunConfig.from_mapping({"max_tokens": "x\n\x1b[2J" * 1000})
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


class _Raises:
    def __repr__(self) -> str:
        raise RuntimeError("repr")

    def __fspath__(self) -> str:
        raise RuntimeError("fspath")


class _RaisingText(_Raises, str):
    __slots__ = ()


class _RaisingInt(_Raises, int):
    def __int__(self) -> int:
        raise RuntimeError("int")


class _RaisingFloat(_Raises, float):
    def __float__(self) -> float:
        raise RuntimeError("float")


HOSTILE = (_Raises(), _RaisingText(), _RaisingInt(5), _RaisingFloat(1), 10**5000, -(10**5000))


@pytest.mark.parametrize("name", options())
def test_a_value_that_raises_or_is_huge_is_one_clear_line(name: str) -> None:
    for value in HOSTILE:
        message = _refusal({name: value})
        # float() reads an int without its methods.
        if message or not isinstance(value, _RaisingInt):
            assert message.startswith(f"{name} ")
            assert message.isprintable()
            assert len(message) < 300


def _refusal(values: dict[str, Any]) -> str:
    try:
        RunConfig.from_mapping(values)
    except TaskError as error:
        return str(error)
    return ""


def test_wrong_names_of_options_are_one_short_line() -> None:
    wrong: list[tuple[Any, str]] = [({1: 2}, "must be text, not 1"), ({"x\n" * 10**6: 1}, "unknown option x")]
    for values, words in wrong:
        with pytest.raises(TaskError, match=words) as caught:
            RunConfig.from_mapping(values)
        assert len(str(caught.value)) < 500
        assert str(caught.value).isprintable()


def test_the_task_file_takes_options_from_their_one_place() -> None:
    for model, names in (
        (RunLimits, RunLimits.model_fields),
        (TaskLimits, TaskLimits.model_fields),
        (TaskFile, ("sandbox", "cache", "cache_sampled", "log_dir", "tools")),
    ):
        for name in names:
            found, option = model.model_fields[name], options()[name]
            assert (found.description or "").startswith(option.doc), name
            if found.default_factory is None:
                assert found.default == option.default, name
    numbers = {name for name, option in options().items() if option.least or option.above is not None}
    assert set(TaskLimits.model_fields) == numbers


def test_keywords_have_the_names_and_types_of_the_config() -> None:
    """The TypedDict and the signatures, spelled for type checkers, equal RunConfig."""
    config = get_type_hints(RunConfig, localns=NAMES)
    keywords = get_type_hints(arun, localns=NAMES) | get_type_hints(RunOptions, localns=NAMES)
    assert {name: keywords[name] for name in config} == config
    limits = get_type_hints(RunLimits)
    assert {name: limits[name] for name in RunLimits.model_fields} == {
        name: config[name] for name in RunLimits.model_fields
    }
    others = {"query", "context", "supervisor", "worker", "config", "options", "return", "limits"}
    assert keywords.keys() - others == config.keys()


def test_help_shows_every_option_with_its_default() -> None:
    for text in (run.__doc__, arun.__doc__, RunConfig.__doc__):
        for name, option in options().items():
            assert f"{name} ({option.default!r}): {option.doc}." in (text or "")


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().max_tokens = 5  # pyright: ignore[reportAttributeAccessIssue]  # wrong on purpose


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SandboxConfig(memory=3.5), "SandboxConfig: memory: must be a number of bytes"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # wrong on purpose
        *[
            (partial(cast(Any, made), value), f"{made.__name__} takes keywords: {made.__name__}({given})")
            for made, value, given in cast(
                "list[tuple[type, object, str]]",
                [
                    (SandboxConfig, "512MiB", "memory='512MiB'"),
                    (SandboxConfig, 60, "timeout=60"),
                    (SandboxConfig, "docker", "backend='docker'"),
                    (SandboxConfig, {}, "backend=..."),
                    (SandboxConfig, Path("pk"), "packages=..."),
                    (RunLimits, 5, "max_worker_calls=5"),
                ],
            )
        ],
        (lambda: SandboxConfig(timeout=-1), "SandboxConfig: timeout: must be above 0, not -1"),
        (lambda: RunLimits(max_tokens="5"), "must be a whole number, not '5'; remove the quotes"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # wrong on purpose
        (lambda: RunLimits(max_iterations=5), "is an option of run() itself: run(max_iterations=...)"),  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # wrong on purpose
        (lambda: RunLimits(max_token=5), "did you mean `max_tokens`"),  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # wrong on purpose
    ],
)
def test_a_wrong_value_of_a_config_is_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TaskError) as raised:
        make()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": "docker"}, "config must be a SandboxConfig or None, not the text 'docker'"),
        ({"config": {}}, "config must be a SandboxConfig or None, not a dict"),
        ({"tools": 3}, "tools must be a dict of functions by name or None, not 3"),
        ({"query": 3}, "query must be text or None, not 3"),
        ({"memory": "512MiB"}, "memory is no argument of a sandbox; give SandboxConfig(memory=...)"),
    ],
)
def test_a_wrong_argument_of_a_sandbox_is_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError) as raised, SyncSandbox(**arguments):
        pass
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


async def test_a_limit_beside_the_config_is_named_and_hides_no_signature() -> None:
    limits: dict[str, Any] = {"timeout": 5}
    with pytest.raises(TaskError, match=r"give SandboxConfig\(timeout=\.\.\.\)"):
        open_sandbox(**limits)
    assert list(inspect.signature(SyncSandbox).parameters)[:2] == ["config", "context"]
    assert next(iter(inspect.signature(SandboxConfig).parameters)) == "backend"


def test_a_folder_of_packages_is_a_path_of_any_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    given: list[str | Path] = ["pk", Path("pk"), "~/pk", Path("~/pk")]
    assert [SandboxConfig(packages=each).packages for each in given] == [
        "pk", "pk", "/somewhere/pk", "/somewhere/pk",
    ]  # fmt: skip
    with pytest.raises(TaskError, match="packages: must be text, not 3"):
        SandboxConfig(packages=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # wrong on purpose


async def test_a_wrong_argument_of_a_runtime_is_one_line() -> None:
    wrong: list[Any] = ["docker", {}]
    for config in wrong:
        with pytest.raises(TaskError, match="config must be a SandboxConfig or None, not"):
            async with SandboxRuntime(config):
                pass


def test_a_cell_is_text_and_its_timeout_a_number() -> None:
    with SyncSandbox() as sandbox:
        for code, timeout in ((3, None), (b"1", None), ("1", "5"), ("1", True)):
            with pytest.raises(TaskError, match=r"^(code|timeout) must be"):
                sandbox.execute(code, timeout=timeout)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # wrong on purpose
        assert sandbox.execute("print(1)").stdout == "1\n"
