"""Tools outside of their calls: names, signatures, system prompt, log, task file."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import re
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from process_support import COMMAND
from support import SMALL, block, read_events

from supdist.engine import HostTool, SandboxConfig, TaskError, arun
from supdist.engine.taskfile import read_task
from supdist.engine.toolbox.signatures import BadArguments, Parameters, show_doc, show_signature
from supdist.engine.toolbox.threads import DaemonThreads
from supdist.engine.toolbox.toolbox import Toolbox
from supdist.handlers import ScriptedHandler

pytestmark = pytest.mark.anyio


def count_vowels(text: str, *, at_least: int = 0) -> int:
    """Count the vowels of a text."""
    return max(at_least, sum(letter in "aeiou" for letter in text))


# What is refused


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((name, "gives this name to the code itself") for name in ("context", "query", "worker",
            "worker_batch", "FINAL", "budget", "history", "ToolError")),
        *((name, "hide Python's own") for name in ("print", "len", "list", "ValueError", "__import__",
            "__name__")),
        *((name, "keyword") for name in ("if", "None", "async", "lambda")),
        *((name, "letters, digits and _") for name in ("", "2x", "a b", "a.b", "naïve", "x;y", "a\n", 5,
            None)),
        ("__mine__", "two underscores"), ("x" * 65, "at most 64 characters"),
    ],
)  # fmt: skip
def test_names_that_are_taken_are_refused_and_the_reason_said(name: Any, why: str) -> None:
    for tool in (count_vowels, HostTool(count_vowels)):
        with pytest.raises(TaskError, match="a tool cannot be called") as caught:
            Toolbox.of({name: tool})
        assert why in str(caught.value)


def takes_a_lock(lock: asyncio.Lock) -> None: ...


def takes_the_unknown(x: Any) -> None: ...


def takes_many_unknown(x: Any) -> None: ...


takes_the_unknown.__annotations__["x"] = "Unknown"
takes_many_unknown.__annotations__["x"] = types.GenericAlias(list, ("Unknown",))


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        (5, "tool name: give a function, not a value of type int"),
        (HostTool("name"), "tool name: give a function, not a value of type str"),  # pyright: ignore[reportArgumentType]  # wrong on purpose
        (HostTool(count_vowels, max_calls=0), "max_calls must be at least 1, not 0"),
        (HostTool(count_vowels, timeout=0), "timeout must be a positive number of seconds"),
        (HostTool(count_vowels, timeout=math.inf), "timeout must be a positive number of seconds"),
        (HostTool(functools.partial(max)), "wrap it in a function of your own"),
        (
            HostTool(takes_a_lock),
            "the annotation of its parameter lock; annotate it with a plain type, or with Any",
        ),
        (HostTool(takes_the_unknown), "an annotation cannot be read: name 'Unknown' is not defined"),
        (
            HostTool(takes_many_unknown),
            "plain data cannot be checked against the annotation of its parameter x",
        ),
    ],
)
def test_tools_that_cannot_work_are_refused(tool: Any, words: str) -> None:
    with pytest.raises(TaskError, match=re.escape(words)):
        Toolbox.of({"name": tool})


def test_more_tools_than_anybody_reads_are_refused() -> None:
    with pytest.raises(TaskError, match="129 tools; at most 128"):
        Toolbox.of({f"t{number}": HostTool(str.upper) for number in range(129)})


# What the supervisor is told


def test_a_signature_shows_no_text_that_may_be_a_key() -> None:
    def ask(
        query: str, key: str = "canary", mode: Literal["a", "b"] = "a", n: int = 3, *rest: Any, d: Any = SMALL
    ) -> list[str]:
        raise NotImplementedError

    shown = (
        "(query: str, key: str = ..., mode: Literal['a', 'b'] = 'a', n: int = 3, *rest: Any, d: Any ="
        " ...) -> list[str]"
    )
    assert show_signature(ask).replace("typing.", "") == shown
    assert show_signature(takes_the_unknown) == "(x: 'Unknown') -> 'None'"
    assert show_signature(max) == "(...)"

    def wide(x: Annotated[str, "x" * 400]) -> None:
        raise NotImplementedError

    assert len(show_signature(wide)) == 300


def test_a_description_is_the_first_paragraph_on_one_line() -> None:
    def ask() -> None:
        """Ask the
        archive.

        Not this.
        """

    assert show_doc(ask) == show_doc(functools.partial(ask)) == "Ask the archive."
    assert show_doc(lambda: None) == ""
    assert show_doc(ask, "Mine.\n\nAll of it.") == "Mine. All of it."
    ask.__doc__ = "word " * 300
    assert len(show_doc(ask)) == len(show_doc(ask, "x" * 2000)) == 1000


TOLD = """
For this question there are further functions:

- `vowels(text: str, *, at_least: int = 0) -> int`: Count the vowels of a text.
- `shout(text: str) -> str` (on the host: plain data in and out, at most 5 calls, raises ToolError): \
Make it $loud.
"""


def shout(text: str) -> str:
    return text.upper()


async def test_the_system_prompt_lists_the_tools_and_says_nothing_where_there_are_none() -> None:
    tools = {"vowels": count_vowels, "shout": HostTool(shout, max_calls=5, description="Make it $loud.")}
    said: list[str] = []
    for given in (tools, {}, None):
        supervisor = ScriptedHandler([block("FINAL(1)")])
        await arun(
            query="q", context="c", supervisor=supervisor, worker=ScriptedHandler([]), tools=given,
            sandbox=SandboxConfig.model_validate(SMALL),
        )  # fmt: skip
        said.append(supervisor.calls[0][0]["content"])
    with_tools, empty, without = said
    assert with_tools == without + TOLD
    assert empty == without


async def test_every_call_is_a_line_of_the_log(tmp_path: Path) -> None:
    def halve(number: int) -> float:
        return 12 // number / 2

    code = """
print(halve(4))
for wrong in ("x", 0, 1, 1):
    try: halve(number=wrong)
    except ToolError as error: print(error.code)
"""
    result = await arun(
        query="q", context="c", supervisor=ScriptedHandler([block(code), block("FINAL(vowels('aeio'))")]),
        worker=ScriptedHandler([]), log_dir=tmp_path, sandbox=SandboxConfig.model_validate(SMALL),
        tools={"vowels": count_vowels, "halve": HostTool(halve, max_calls=3)},
    )  # fmt: skip
    assert result.answer == "4"
    assert read_events(tmp_path, "supervisor")[0]["tools"] == {"vowels": "guest", "halve": "host"}
    calls = [event for event in read_events(tmp_path, "repl") if event["event"] == "tool"]
    assert all(
        (call["tool"], call["cell"], call["step"], call["run_id"]) == ("halve", 1, 1, result.run_id)
        for call in calls
    )
    assert all(call["elapsed"] >= 0 for call in calls)
    facts = [
        (call["args"], call["kwargs"], call.get("result"), call.get("error"), call.get("message"))
        for call in calls
    ]
    assert facts == [
        ([4], {}, 1.5, None, None),
        ([], {"number": "x"}, None, "bad_arguments", "number: Input should be a valid integer"),
        ([], {"number": 0}, None, "failed", "ZeroDivisionError: integer division or modulo by zero"),
        (None, None, None, "budget_exceeded", "all 3 calls are used"),
    ]
    assert [event["event"] for event in read_events(tmp_path, "repl")] == [
        "run_start",
        *["tool"] * 4,
        "cell",
        "cell",
    ]


# The task file

MODULE = """
import {helper}
from supdist.engine import HostTool

def twice(text):
    "Say it twice."
    return _again(text) * 2

def _again(text):
    return text

def _size(path: str) -> int:
    return {helper}.SIZES[path]

class Sizes:
    size = HostTool(_size, max_calls=2)
"""


def task_with_tools(folder: Path, tools: dict[str, str], code: str = "FINAL(1)") -> Path:
    (folder / "supdist_test_helper.py").write_text("SIZES = {'a': 7}\n")
    (folder / "supdist_test_tools.py").write_text(MODULE.format(helper="supdist_test_helper"))
    task = {
        "query": "q", "context": "c", "tools": tools, "sandbox": {"memory": "256MiB"},
        "log_dir": str(folder / "logs"), "supervisor": {"handler": "scripted", "replies": [block(code)]},
        "worker": {"handler": "builtin"},
    }  # fmt: skip
    (folder / "task.json").write_text(json.dumps(task))
    return folder / "task.json"


@pytest.fixture
def importing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is imported meanwhile is forgotten, and so is where it was found."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("supdist_test_tools", "supdist_test_helper"):
        monkeypatch.setitem(sys.modules, name, sys)
        del sys.modules[name]


def test_a_task_file_names_tools_beside_it_and_in_the_environment(tmp_path: Path) -> None:
    tools = {
        "twice": "supdist_test_tools:twice",
        "size": "supdist_test_tools:Sizes.size",
        "root": "math:sqrt",
    }
    task = task_with_tools(tmp_path, tools, "FINAL(f\"{twice('ab')} {size('a')} {root(9)}\")")
    subprocess.run([*COMMAND, "trust", str(tmp_path)], check=True, timeout=60)
    done = subprocess.run(
        [*COMMAND, "run", str(task)],
        cwd="/", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "abab 7 3.0\n"), done.stderr
    system = read_events(tmp_path / "logs", "supervisor")[1]["messages"][0]["content"]
    assert "- `twice(text)`: Say it twice.\n- `size(path: str) -> int` (on the host" in system


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("supdist_test_none:f", "tools.t: cannot import supdist_test_none: ModuleNotFoundError"),
        ("supdist_test_tools:f", "tools.t: supdist_test_tools has no f"),
        ("supdist_test_tools:Sizes.f", "tools.t: supdist_test_tools has no Sizes.f"),
        ("broken_tools:f", "tools.t: cannot import broken_tools: ZeroDivisionError: division by zero"),
        ("json:dumps", "tools.t: json beside the task file has the name of another module"),
        ("supdist_test_tools", "tools.t: must be module:function, such as my_tools:record"),
        ("../x:f", "tools.t: must be module:function, such as my_tools:record"),
        ("os:", "tools.t: must be module:function, such as my_tools:record"),
    ],
)
@pytest.mark.usefixtures("importing")
def test_tools_that_a_task_file_names_wrongly_are_errors_that_say_so(
    tmp_path: Path, place: str, words: str
) -> None:
    task = task_with_tools(tmp_path, {"t": place})
    (tmp_path / "broken_tools.py").write_text("1 / 0")
    (tmp_path / "json.py").write_text("def dumps(): pass")
    with pytest.raises(TaskError) as caught:
        read_task(task).load_tools(tmp_path)
    assert words in str(caught.value)


@pytest.mark.usefixtures("importing")
def test_a_second_task_with_a_module_of_the_same_name_does_not_get_the_firsts(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        task_with_tools(tmp_path / name, {"t": "supdist_test_tools:twice"})
    first = read_task(tmp_path / "one/task.json").load_tools(tmp_path / "one")
    assert first["t"] is read_task(tmp_path / "one/task.json").load_tools(tmp_path / "one")["t"]
    with pytest.raises(
        TaskError, match=r"supdist_test_tools beside the task file .*one/supdist_test_tools.py; rename it"
    ):
        read_task(tmp_path / "two/task.json").load_tools(tmp_path / "two")


# Parts, without a sandbox


async def test_a_function_that_nobody_waits_for_holds_its_thread_until_it_returns() -> None:
    threads, entered, release = DaemonThreads(2), threading.Semaphore(0), threading.Event()

    def hang() -> bool:
        entered.release()
        return release.wait(20)

    tasks = [asyncio.create_task(threads.run(hang)) for _ in range(2)]
    for _ in tasks:
        await asyncio.to_thread(entered.acquire, timeout=5)
    third = asyncio.create_task(threads.run(release.is_set))
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    release.set()
    assert await tasks[1] is True
    assert await third is True, "it began when a thread was free, and that was after the release"


async def test_what_a_thread_raises_is_raised() -> None:
    def fails() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        await DaemonThreads(1).run(fails)


def test_parameters_bind_as_python_does() -> None:
    def free(a: Any, /, b: Any, *c: Any, d: int = 1, **e: Any) -> None: ...

    parameters = Parameters("free", free)
    bound = parameters.bind([1, 2, 3, 4], {"d": 5, "a": 6})
    assert (bound.args, bound.kwargs) == ((1, 2, 3, 4), {"d": 5, "a": 6})
    for args, kwargs in (([], {"b": 2}), ([1], {}), ([1, 2], {"b": 3})):
        with pytest.raises(BadArguments):
            parameters.bind(args, kwargs)


def test_a_complaint_is_cut() -> None:
    parameters = Parameters("f", lambda: None)
    with pytest.raises(BadArguments) as caught:
        parameters.bind([], {"x" * 10_000: 1})
    assert len(str(caught.value)) == 1000
