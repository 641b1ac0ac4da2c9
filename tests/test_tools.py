"""Tools: functions that travel into the sandbox, and functions of the host that can be called from it."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import importlib
import math
import pickle
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from datetime import date, datetime
from typing import Annotated, Any, Literal

import pydantic
import pytest
from pydantic import Field
from support import REPOSITORY, SMALL, Open, block, echo

from supdist.engine import HostTool, Outcome, SandboxLost, SyncSandbox, TaskError, run
from supdist.engine.toolbox.toolbox import Tool, Toolbox, ToolUse
from supdist.handlers import ScriptedHandler

pytestmark = pytest.mark.anyio

# Guest tools

_VOWELS = set("aeiou")


def _is_vowel(letter: str) -> bool:
    return letter.lower() in _VOWELS


def count_vowels(text: str, *, at_least: int = 0) -> int:
    """Count the vowels of a text."""
    return max(at_least, sum(map(_is_vowel, text)))


@dataclasses.dataclass
class Scaler:
    """An object whose call is a tool."""

    factor: float

    def __call__(self, value: float) -> float:
        return self.factor * value

    def describe(self) -> str:
        return f"{type(self).__name__} {math.floor(self.factor)}"


def counter(start: int) -> Callable[[], int]:
    """A closure with state of its own."""
    count = start

    def step() -> int:
        nonlocal count
        count += 1
        return count

    return step


async def test_a_function_brings_its_module_along(small: Open) -> None:
    step = counter(10)
    tools: dict[str, Tool] = {
        "vowels": count_vowels,
        "scale": Scaler(2.5),
        "describe": Scaler(3.7).describe,
        "step": step,
        "twice": functools.partial(Scaler(2), 21),
        "root": math.sqrt,
        "Scaler": Scaler,
    }
    code = """
print(vowels("Education"), vowels("rhythm", at_least=1), scale(4), describe(),
      step(), step(), twice(), root(9))
print(Scaler(1) == Scaler(1), vowels.__name__, vowels.__doc__)
"""
    async with small(tools=tools) as sandbox:
        result = await sandbox.execute(code)
        again = await sandbox.execute("print(step())")
    assert (
        result.stdout == "5 1 10.0 Scaler 3 11 12 42 3.0\nTrue count_vowels Count the vowels of a text.\n"
    ), result
    assert again.stdout == "13\n", "a tool keeps its state as a variable would"
    assert step() == 11, "and the host keeps its own"


async def test_tools_are_there_again_in_the_next_cell_and_after_a_reset(small: Open) -> None:
    async with small(tools={"vowels": count_vowels, "shout": HostTool(str.upper)}) as sandbox:
        await sandbox.execute("vowels = shout = None\ndel vowels")
        again = await sandbox.execute("print(vowels('aa'), shout('x'))")
        await sandbox.reset()
        after = await sandbox.execute("print(vowels('aa'), shout('x'))")
    assert again.stdout == after.stdout == "2 X\n"


async def test_a_tools_traceback_has_its_lines_and_no_path_of_the_host(small: Open) -> None:
    def broken() -> None:
        raise LookupError("inside")

    async with small(tools={"broken": broken}) as sandbox:
        result = await sandbox.execute("broken()")
        globals_ = await sandbox.execute("print(sorted(broken.__globals__), broken.__code__.co_filename)")
    assert result.error is not None
    assert (result.error.type, result.error.message) == ("LookupError", "inside")
    assert 'File "<tool broken>", line' in result.error.traceback
    assert "__file__" not in globals_.stdout
    assert str(REPOSITORY) not in result.error.traceback + globals_.stdout


def test_what_travels_names_no_path_and_no_module_by_value() -> None:
    box = Toolbox.of({"vowels": count_vowels, "show": lambda: (pytest.__name__, SMALL)})
    sent = b"".join(tool.pickle for tool in box.guest)
    assert str(REPOSITORY).encode() not in sent
    assert __file__.encode() not in sent
    assert (pytest.__file__ or "").encode() not in sent


def test_all_code_of_a_tool_is_named_after_the_tool() -> None:
    """Whatever file name the installed cloudpickle gives to code objects."""

    def outer() -> list[str]:
        def inner() -> str:
            return "inner"

        return [inner() for _ in range(1)]

    (tool,) = Toolbox.of({"outer": outer}).guest
    sent = pickle.loads(tool.pickle)
    codes = [sent.__code__, *(part for part in sent.__code__.co_consts if isinstance(part, types.CodeType))]
    assert len(codes) > 1
    assert {code.co_filename for code in codes} == {"<tool outer>"}
    assert [code.co_firstlineno for code in codes] == [
        code.co_firstlineno
        for code in (outer.__code__, *(c for c in outer.__code__.co_consts if isinstance(c, types.CodeType)))
    ]


def test_nothing_stays_registered_that_was_not_before() -> None:
    Toolbox.of({"vowels": count_vowels})
    cloudpickle: Any = importlib.import_module("cloudpickle")
    assert cloudpickle.list_registry_pickle_by_value() == set()
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        Toolbox.of({"vowels": count_vowels})
        assert cloudpickle.list_registry_pickle_by_value() == {__name__}
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Cursed:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError("not me")


@pytest.mark.parametrize("thing", [threading.Lock(), Cursed(), (n for n in "x")], ids=type)
async def test_what_cannot_be_sent_is_said_before_anything_starts(small: Open, thing: object) -> None:
    with pytest.raises(TaskError, match=r"tool holds cannot be sent into the sandbox: .*HostTool"):
        async with small(tools={"holds": lambda: thing}):
            raise AssertionError


def test_tools_that_bring_too_much_are_refused() -> None:
    data = bytes(17 << 20)
    with pytest.raises(TaskError, match="larger than 16 MiB together; put data into the context"):
        Toolbox.of({"holds": lambda: data})


async def test_a_package_that_the_sandbox_lacks_is_named_when_the_tool_is_called(small: Open) -> None:
    def imports() -> object:
        import pydantic_core

        return pydantic_core

    tools = {"uses": lambda: pydantic.BaseModel, "imports": imports, "vowels": count_vowels}
    code = """
for tool in (uses, imports):
    try: tool()
    except ImportError as error: print(error)
print(vowels("still here"))
"""
    async with small(tools=tools) as sandbox:
        result = await sandbox.execute(code)
    first, second, last = result.stdout.splitlines()
    assert "the tool uses cannot be used here: ModuleNotFoundError: No module named 'pydantic" in first
    assert "from others it can use the standard library" in first
    assert second == "No module named 'pydantic_core'"
    assert last == "3"


# Host tools

CANARY = "canary-3f1c"


async def test_a_host_tool_answers_plain_or_async(small: Open) -> None:
    secrets = {"ada": CANARY}

    def plain(key: str) -> int:
        return len(secrets[key])

    async def waiting(key: str, *, times: int = 1) -> list[str]:
        await asyncio.sleep(0)
        return [key] * times

    class Asking:
        async def __call__(self, *keys: str, **more: int) -> dict[str, Any]:
            return {"keys": keys, "more": more}

    tools = {"plain": HostTool(plain), "waiting": HostTool(waiting), "asking": HostTool(Asking())}
    code = "print(plain('ada'), waiting('b', times=2), waiting(key='c'), asking('d', 'e', f=1))"
    async with small(tools=tools) as sandbox:
        result = await sandbox.execute(code)
    assert result.stdout == "11 ['b', 'b'] ['c'] {'keys': ['d', 'e'], 'more': {'f': 1}}\n", result


def first_of(
    words: list[str],
    limit: Annotated[int, Field(gt=0)] = 3,
    mode: Literal["head", "tail"] = "head",
    *,
    day: date | None = None,
    pair: tuple[int, float] = (0, 0.0),
    anything: Any = None,
    **counts: int,
) -> str:
    return repr((words[:limit], mode, day, pair, anything, counts))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("first_of(['a'], 1, 'tail', day='2024-05-01', pair=[1, 2], anything={'k': [None]}, n=5)",
         "(['a'], 'tail', datetime.date(2024, 5, 1), (1, 2.0), {'k': [None]}, {'n': 5})"),
        ("first_of()", "bad_arguments: tool first_of: missing a required argument: 'words'"),
        ("first_of([], 1, 'head', 4)", "bad_arguments: tool first_of: too many positional arguments"),
        ("first_of([], words=[])", "bad_arguments: tool first_of: multiple values for argument 'words'"),
        ("first_of('text')", "bad_arguments: tool first_of: words: Input should be a valid array"),
        ("first_of(['a', 5])", "bad_arguments: tool first_of: words[1]: Input should be a valid string"),
        ("first_of([], '3')", "bad_arguments: tool first_of: limit: Input should be a valid integer"),
        ("first_of([], 2.0)", "bad_arguments: tool first_of: limit: Input should be a valid integer"),
        ("first_of([], True)", "bad_arguments: tool first_of: limit: Input should be a valid integer"),
        ("first_of([], 0)", "bad_arguments: tool first_of: limit: Input should be greater than 0"),
        ("first_of([], mode='all')", "bad_arguments: tool first_of: mode: Input should be 'head' or 'tail'"),
        ("first_of([], day='soon')", "bad_arguments: tool first_of: day: "),
        ("first_of([], n='x')", "bad_arguments: tool first_of: n: Input should be a valid integer"),
        ("first_of({'a'})",
            "bad_arguments: a tool of the host takes plain data, and this is a value of type set"),
        ("first_of([], anything=print)", "and this is a value of type builtin_function_or_method"),
        ("first_of([], anything=float('nan'))", "and this is a float that is not finite"),
        ("first_of([], 1 << 70)", "and this is an int of more than 64 bits"),
        ("first_of([], anything={1: 2})", "and this is a key of type int"),
        ("x = []; x.append(x); first_of(x)", "and this is more than 32 levels"),
        ("first_of(['x' * 300_000])", "too_large: the arguments are more than 262144 bytes"),
        ("first_of([], anything=[0] * 12_000)", "too_large: the arguments are more than 10000 values"),
    ],
)  # fmt: skip
async def test_arguments_are_checked_against_the_signature(small: Open, call: str, words: str) -> None:
    *before, last = call.split("; ")
    code = (
        "\n".join(before)
        + f"\ntry: print({last})\nexcept ToolError as error: print(f'{{error.code}}: {{error.message}}')"
    )
    async with small(tools={"first_of": HostTool(first_of)}) as sandbox:
        result = await sandbox.execute(code)
    assert words in result.stdout, result


async def test_text_of_any_kind_goes_there_and_back(small: Open) -> None:
    seen: list[str] = []

    def keep(text: str) -> str:
        seen.append(text)
        return text + "\udfff"

    async with small(tools={"keep": HostTool(keep)}) as sandbox:
        result = await sandbox.execute("print(ascii(keep('\\0 é🙂\\u2028 \"\\\\ \\ud800')))")
    assert seen == ['\0 é🙂\u2028 "\\ \ufffd']
    assert result.stdout == ascii(seen[0] + "\ufffd") + "\n"


@pytest.mark.parametrize(
    ("result", "printed"),
    [
        (None, "None"), ((1, (2.5, "x")), "[1, [2.5, 'x']]"), ({"a": [True]}, "{'a': [True]}"),
        ({1, 2}, "failed the tool failed"), (b"x", "failed the tool failed"),
        (math.inf, "failed the tool failed"), (1 << 64, "failed the tool failed"),
        ("x" * (1 << 20), "too_large the result is more than 1048576 bytes"),
        ([0] * 12_000, "too_large the result is more than 10000 values"),
    ],
    ids=repr,
)  # fmt: skip
async def test_results_are_plain_data_too(small: Open, result: object, printed: str) -> None:
    code = "try: print(give())\nexcept ToolError as error: print(error.code, error.message)"
    async with small(tools={"give": HostTool(lambda: result)}) as sandbox:
        shown = await sandbox.execute(code)
    assert shown.stdout == printed + "\n"


def _refuse(value: int) -> int:
    if value == 1:
        raise ValueError(CANARY)
    if value == 2:
        raise ZeroDivisionError(CANARY)
    return value


class Secretive(pydantic.BaseModel):
    value: Annotated[int, pydantic.AfterValidator(_refuse)]


async def test_a_failure_tells_its_kind_and_nothing_of_the_host(
    small: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOL_KEY", CANARY)
    uses: list[ToolUse] = []

    def fails(how: str, key: str = CANARY) -> None:
        match how:
            case "raises":
                raise RuntimeError(f"{key} in {__file__}")
            case "exits":
                sys.exit(CANARY)
            case "stops":
                raise StopIteration(CANARY)
            case _:
                raise TimeoutError(CANARY)

    async def checked(value: Secretive) -> int:
        if value.value == 3:
            raise asyncio.CancelledError(CANARY)
        return value.value

    code = """
import os, traceback
for ask in (*(lambda how=how: fails(how) for how in ("raises", "exits", "stops", "times out")),
            *(lambda n=n: checked({"value": n}) for n in (1, 2, 3, 4))):
    try: print(ask())
    except ToolError as error: print(error.code, error.message); traceback.print_exc()
print(fails.__doc__, fails.__closure__, dict(os.environ))
"""
    tools = {"fails": HostTool(fails), "checked": HostTool(checked)}
    async with small(tools=tools, on_tool=uses.append) as sandbox:
        result = await sandbox.execute(code)
    assert result.stdout.splitlines()[:8] == [
        *["failed the tool failed"] * 4,
        "bad_arguments tool checked: value['value']: is not accepted",
        "failed the tool failed",
        "cancelled the call was cancelled",
        "4",
    ]  # fmt: skip
    assert CANARY not in result.stdout + result.stderr
    assert str(REPOSITORY) not in result.stdout + result.stderr
    assert "fails(how: str, key: str = ...) -> None" in result.stdout
    assert [CANARY in use.message for use in uses] == [True, True, True, True, False, True, False, False]


async def test_a_call_has_a_deadline(small: Open) -> None:
    release, cancelled = threading.Event(), asyncio.Event()

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    tools = {
        "hangs": HostTool(hangs, timeout=0.5),
        "blocks": HostTool(release.wait, timeout=0.1),
        "works": HostTool(lambda: "works"),
    }
    code = (
        "for tool in (hangs, blocks):\n  try: tool()\n  except ToolError as error: print(error)\n"
        "print(works())"
    )
    async with small(tools=tools) as sandbox:
        result = await sandbox.execute(code)
        release.set()
    assert result.stdout == "timeout: no result within 0.5 s\ntimeout: no result within 0.1 s\nworks\n"
    assert cancelled.is_set()


async def test_a_budget_is_kept_from_any_thread_and_over_a_reset(small: Open) -> None:
    asked: list[int] = []
    uses: list[ToolUse] = []
    code = """
from concurrent.futures import ThreadPoolExecutor
def one(n):
    try: return ask(n)
    except ToolError as error: return f"{error.code}: {error.message}"
with ThreadPoolExecutor(8) as pool: results = list(pool.map(one, range(30)))
print(sum(r is None for r in results), {r for r in results if r}, other())
"""
    tools = {"ask": HostTool(asked.append, max_calls=7), "other": HostTool(lambda: "free")}
    async with small(tools=tools, on_tool=uses.append) as sandbox:
        result = await sandbox.execute(code)
        await sandbox.reset()
        again = await sandbox.execute("ask(1)")
    assert result.stdout == "7 {'budget_exceeded: all 7 calls are used'} free\n"
    assert again.error is not None
    assert "budget_exceeded" in again.error.message
    assert len(asked) == 7
    assert [use.error for use in uses if use.tool == "ask"].count("budget_exceeded") == 1, "told once"


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_calls_of_many_threads_run_at_once(small: Open, kind: str) -> None:
    meeting, gathering = threading.Barrier(12), asyncio.Barrier(12)

    def meet(number: int) -> int:
        meeting.wait(5)
        return number

    async def gather(number: int) -> int:
        async with asyncio.timeout(5):
            await gathering.wait()
        return number

    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(12) as pool: print(list(pool.map(meet, range(12))) == list(range(12)))
"""
    async with small(tools={"meet": HostTool(meet if kind == "plain" else gather)}) as sandbox:
        result = await sandbox.execute(code)
    assert result.stdout == "True\n", result


async def test_tools_and_workers_answer_each_their_own(small: Open) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
def both(n): return worker(f"w{n}"), lower(f"T{n}"), worker_batch([f"b{n}", "x"])
with ThreadPoolExecutor(8) as pool:
    print(list(pool.map(both, range(50))) == [(f"W{n}", f"t{n}", [f"B{n}", "X"]) for n in range(50)])
"""
    async with small(tools={"lower": HostTool(str.lower)}, on_call=echo) as sandbox:
        result = await sandbox.execute(code)
    assert result.stdout == "True\n", result


async def test_waiting_for_a_tool_does_not_count_as_the_cells_time(small: Open) -> None:
    async def slow() -> str:
        await asyncio.sleep(0.6)
        return "done"

    async with small(tools={"slow": HostTool(slow)}) as sandbox:
        result = await sandbox.execute("print(slow())", timeout=0.3)
    assert (result.outcome, result.stdout) == (Outcome.OK, "done\n")
    assert result.worker_wait >= 0.55


class Hanging:
    """A tool that notes when it is called and when it is cancelled."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def hang(self) -> None:
        self.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def test_an_interrupt_cancels_the_call(small: Open) -> None:
    hanging, uses = Hanging(), list[ToolUse]()
    async with small(tools={"hang": HostTool(hanging.hang)}, on_tool=uses.append) as sandbox:
        running = asyncio.create_task(sandbox.execute("kept = 1\nhang()"))
        await asyncio.wait_for(hanging.began.wait(), 5)
        await sandbox.interrupt()
        result = await running
        await asyncio.wait_for(hanging.cancelled.wait(), 5)
        after = await sandbox.execute("print(kept)")
    assert (result.outcome, result.state_lost, after.stdout) == (Outcome.KILLED, False, "1\n")
    assert [use.error for use in uses] == ["cancelled"]


@pytest.mark.parametrize(
    "end", ["FINAL(1)", "import os; os._exit(1)", "import os; os.write(3, bytes(4)); time.sleep(9)"]
)
async def test_calls_of_an_ended_cell_are_cancelled(small: Open, end: str) -> None:
    hanging = Hanging()
    code = f"import threading, time\nthreading.Thread(target=hang, daemon=True).start()\ngo()\n{end}"
    tools = {"hang": HostTool(hanging.hang), "go": HostTool(hanging.began.wait)}
    async with small(tools=tools) as sandbox:
        await sandbox.execute(code)
        await asyncio.wait_for(hanging.cancelled.wait(), 5)


async def test_a_close_during_a_call_ends_it(small: Open) -> None:
    hanging, tasks = Hanging(), len(asyncio.all_tasks())
    async with small(tools={"hang": HostTool(hanging.hang)}) as sandbox:
        running = asyncio.create_task(sandbox.execute("hang()"))
        await asyncio.wait_for(hanging.began.wait(), 5)
        await asyncio.wait_for(sandbox.close(), 5)
        assert (await running).outcome is Outcome.KILLED
    assert hanging.cancelled.is_set()
    assert len(asyncio.all_tasks()) <= tasks


async def test_a_late_thread_calls_for_no_later_cell(small: Open) -> None:
    code = """
import threading
import types
go, said = threading.Event(), []
def late():
    go.wait()
    try: said.append(shout("stale"))
    except ToolError as error: said.append(str(error))
thread = threading.Thread(target=late); thread.start()
"""
    async with small(tools={"shout": HostTool(str.upper)}) as sandbox:
        await sandbox.execute(code)
        result = await sandbox.execute("go.set(); thread.join(); print(said, shout('own'))")
    assert result.stdout == "['cancelled: the cell of this call has ended'] OWN\n"


async def test_a_child_process_of_the_cell_cannot_call(small: Open) -> None:
    code = """
import os
if not os.fork():
    try: shout("x")
    except RuntimeError as error: os.write(1, str(error).encode())
    os._exit(0)
os.wait()
"""
    async with small(tools={"shout": HostTool(str.upper)}) as sandbox:
        result = await sandbox.execute(code)
        after = await sandbox.execute("print(shout('x'))")
    assert "only in the process of the cell" in result.stdout
    assert after.stdout == "X\n"


async def test_what_on_tool_raises_is_raised_to_whoever_runs_the_cell(small: Open) -> None:
    def on_tool(_: ToolUse) -> None:
        raise RuntimeError("the disk is full")

    async with small(tools={"shout": HostTool(str.upper)}, on_tool=on_tool) as sandbox:
        with pytest.raises(RuntimeError, match="disk is full"):
            await sandbox.execute("shout('x')")
        with pytest.raises(SandboxLost):
            await sandbox.execute("1")


async def test_without_tools_there_are_none(small: Open) -> None:
    async with small() as sandbox:
        result = await sandbox.execute("print(sorted(n for n in globals() if not n.startswith('_')))")
    assert result.stdout == "[]\n"


def test_the_same_without_an_event_loop() -> None:
    tools = {"vowels": count_vowels, "shout": HostTool(str.upper)}
    uses: list[ToolUse] = []
    with SyncSandbox(tools=tools, on_tool=uses.append) as sandbox:
        assert sandbox.execute("print(vowels(shout('ada')))").stdout == "2\n"
    assert [(use.tool, use.result) for use in uses] == [("shout", "ADA")]
    supervisor = ScriptedHandler([block("FINAL(shout(context))")])
    result = run(query="q", context="c", supervisor=supervisor, worker=ScriptedHandler([]), tools=tools)
    assert result.answer == "C"


def test_the_authors_log_has_the_traceback_of_a_tool_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    def lookup(key: str) -> str:
        raise KeyError(key)

    code = """
for _ in range(30):
    try: lookup(chr(27) + '[2J')
    except ToolError as error: text = str(error)
print(text)"""
    with SyncSandbox(tools={"lookup": HostTool(lookup)}) as sandbox:
        assert sandbox.execute(code).stdout == "failed: the tool failed\n"
    first, *others = [record.getMessage() for record in caplog.records if record.name == "supdist.tools"]
    assert first.startswith("host tool lookup failed: Traceback")
    assert "raise KeyError(key)" in first
    assert "\x1b" not in first
    # The code decides how often it calls.
    assert len(others) == 19


class _Lazy(dict[str, int]):
    def items(self) -> Any:
        raise RuntimeError("no row")


@pytest.mark.parametrize(
    ("result", "returned"),
    [
        ({1, 2}, "a set"), (b"x", "a bytes"), (datetime(2020, 1, 1), "a datetime"), (object(), "an object"),
        ((each for each in "ab"), "a generator"), (math.nan, "a float that is not finite"),
        (10**100, "an int of more than 64 bits"), ({"when": b"x"}, "a dict with a value of type bytes"),
        ({1: "a"}, "a dict with a key of type int, where only str can be one"),
        ([math.inf], "a list with a float that is not finite"), (_Lazy(a=1), None),
    ],
    ids=["set", "bytes", "datetime", "object", "generator", "nan", "int", "inside", "key", "list", "lazy"],
)  # fmt: skip
def test_the_authors_log_names_a_result_that_cannot_be_sent(
    result: object, returned: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with SyncSandbox(tools={"give": HostTool(lambda: result)}) as sandbox:
        error = sandbox.execute("give()").error
    assert error is not None
    assert error.message == "failed: the tool failed"
    (logged,) = [record.getMessage() for record in caplog.records if record.name == "supdist.tools"]
    if returned is None:
        assert "RuntimeError: no row" in logged
    else:
        assert logged == f"host tool give returned {returned}; return data that JSON can hold"


def test_a_function_that_never_returns_does_not_keep_the_interpreter_from_its_end() -> None:
    code = """
import threading
import types
from supdist.engine import HostTool, SyncSandbox
with SyncSandbox(tools={"hang": HostTool(threading.Event().wait, timeout=0.1)}) as sandbox:
    print(sandbox.execute("hang()").error.message)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "timeout: no result within 0.1 s\n"
