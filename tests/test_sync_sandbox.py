"""Sandboxes for code without an event loop: they share one, and its zygotes."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from process_support import program, zygotes
from support import SMALL_CONFIG, block

from supdist.engine import HostTool, Outcome, SandboxError, SandboxFileError, SyncSandbox, TaskError, run
from supdist.engine.sandbox import CallError, WorkerCall, as_data
from supdist.engine.sandbox.sync_sandbox import blocking_calls
from supdist.handlers import ScriptedHandler


def test_the_same_without_an_event_loop() -> None:
    with SyncSandbox(context="doc") as sandbox:
        assert sandbox.execute("print(context)").stdout == "doc\n"
        assert sandbox.isolation.missing() == []
        sandbox.reset()
        assert sandbox.execute("print('x' in globals())").stdout == "False\n"


def test_a_result_as_data_goes_through_json() -> None:
    with SyncSandbox() as sandbox:
        data = json.loads(json.dumps(as_data(sandbox.execute("1 / 0"))))
    assert (data["outcome"], data["error"]["type"]) == ("user_error", "ZeroDivisionError")


def test_the_same_from_several_threads() -> None:
    results: list[str] = []

    def work(number: int) -> None:
        with SyncSandbox(context=str(number)) as sandbox:
            results.append(sandbox.execute("print(context)").stdout.strip())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["0", "1", "2", "3"]


def use() -> str:
    with SyncSandbox(SMALL_CONFIG) as sandbox:
        return sandbox.execute("print('hi')").stdout


def answer() -> str | None:
    return run(
        query="q", context="c", supervisor=ScriptedHandler([block("FINAL('hi')")]), worker=None,
        sandbox=SMALL_CONFIG,
    ).answer  # fmt: skip


@pytest.mark.parametrize("call", [use, answer])
def test_one_zygote_serves_all_blocking_calls_of_a_process(call: Callable[[], object]) -> None:
    with SyncSandbox(SMALL_CONFIG) as sandbox:
        first = zygotes()
        call()
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        assert sandbox.execute("1").outcome is Outcome.OK
    call()
    assert zygotes() == first
    assert len(first) == 1


def test_it_can_be_opened_and_closed_by_hand_again_and_again() -> None:
    sandbox = SyncSandbox(SMALL_CONFIG, context="text")
    sandbox.close()
    for _ in range(2):
        assert sandbox.open() is sandbox
        with pytest.raises(SandboxError, match="open already"):
            sandbox.open()
        assert sandbox.execute("print(context, 'x' in globals()); x = 1").stdout == "text False\n"
        sandbox.close()
        sandbox.close()
        with pytest.raises(SandboxError, match="or call open"):
            sandbox.execute("1")


def test_another_thread_interrupts_the_cell_and_its_variables_stay() -> None:
    begun = threading.Event()
    with SyncSandbox(SMALL_CONFIG, tools={"begin": HostTool(begun.set)}) as sandbox:
        sandbox.interrupt()

        def stop() -> None:
            if begun.wait(30):
                sandbox.interrupt()

        thread = threading.Thread(target=stop)
        thread.start()
        result = sandbox.execute("x = 7; begin()\nwhile True: pass", timeout=60)
        thread.join()
        assert result.error is not None
        assert result.error.type == "KeyboardInterrupt"
        assert sandbox.execute("print(x)").stdout == "7\n"
    with pytest.raises(SandboxError, match="not open"):
        sandbox.interrupt()


def test_ctrl_c_interrupts_the_cell_and_keeps_its_variables() -> None:
    """The host's signal arrives once the cell runs."""
    started = threading.Event()

    async def on_call(call: WorkerCall) -> list[str | CallError]:
        started.set()
        return ["go on"]

    def press() -> None:
        started.wait()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with SyncSandbox(SMALL_CONFIG, on_call=on_call) as sandbox:
        sandbox.execute("x = 1")
        threading.Thread(target=press).start()
        with pytest.raises(KeyboardInterrupt):
            sandbox.execute("worker('x')\nwhile True: pass", timeout=60)
        assert sandbox.execute("print(x)").stdout == "1\n"


def test_a_call_from_the_event_loop_that_would_serve_it_is_an_error_and_no_deadlock() -> None:
    with SyncSandbox(SMALL_CONFIG) as inner:

        async def blocking() -> str:
            try:
                return inner.execute("print('inner')").stdout
            except SandboxError as error:
                return str(error)

        async def in_a_thread() -> str:
            done = await asyncio.to_thread(inner.execute, "print('inner')")
            return done.stdout

        async def own() -> str:
            return use()

        tools = {each.__name__: HostTool(each) for each in (blocking, in_a_thread, own)}
        with SyncSandbox(SMALL_CONFIG, tools=tools) as outer:
            assert "asyncio.to_thread" in outer.execute("print(blocking())").stdout
            assert outer.execute("print(in_a_thread(), own(), sep='')").stdout == "inner\nhi\n\n"


def test_what_is_used_while_the_process_ends_says_so() -> None:
    done = program("""
import atexit
from supdist.engine import SandboxError, SyncSandbox
def late():
    for use in (lambda: sandbox.execute("1"), sandbox.close, lambda: SyncSandbox().open()):
        try: print(use())
        except SandboxError as error: print(error)
atexit.register(late)
sandbox = SyncSandbox().open()
""")
    assert (done.returncode, done.stderr) == (0, "")
    ended = "the process ends: its sandboxes are closed"
    assert done.stdout.splitlines() == [ended, "None", ended]


@pytest.mark.parametrize(
    ("args", "options", "words"),
    [
        (("q", "c"), {}, "too many positional arguments"),
        ((), {"query": "q", "context": "c"}, "missing a required argument: 'supervisor'"),
        ((), {}, "missing a required argument: 'query'"),
    ],
)
def test_wrong_arguments_of_run_are_an_error_and_no_endless_wait(
    args: tuple[str, ...], options: dict[str, str], words: str
) -> None:
    call: Any = run
    with pytest.raises(TypeError, match=rf"run\(\): {words}; it takes keywords"):
        call(*args, **options)


def test_work_that_cannot_begin_ends_its_call() -> None:
    async def needs_one(value: int) -> int:
        return value

    work: Any = needs_one
    with blocking_calls() as thread, pytest.raises(TypeError, match="missing 1 required"):
        thread.call(work)


def test_what_is_no_file_for_a_sandbox_is_refused_and_it_lives_on() -> None:
    with SyncSandbox(SMALL_CONFIG) as sandbox:
        put: Any = sandbox.put
        with pytest.raises(TaskError, match=r"must be bytes, not the text 'text'; write TEXT.encode\(\)"):
            put("n.txt", "text")
        with pytest.raises(TaskError, match="data must be bytes, not 5"):
            put("n.txt", 5)
        with pytest.raises(TaskError, match="path must be text"):
            put(Path("n.txt"), b"")
        with pytest.raises(SandboxFileError, match="has room for"):
            sandbox.put("large", bytes(int(SMALL_CONFIG.scratch) + 1))
        sandbox.put("n.txt", b"text")
        assert sandbox.execute("print(open('n.txt').read())").stdout == "text\n"
