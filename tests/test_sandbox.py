"""The contract of a sandbox, over every backend."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import Open, echo

from supdist.engine import (
    LocalProtocolError,
    Outcome,
    SandboxConfig,
    SandboxError,
    SandboxLost,
    open_sandbox,
)
from supdist.engine.sandbox import CallError, WorkerCall
from supdist.sandbox_image import protocol

pytestmark = pytest.mark.anyio


async def test_variables_persist_between_cells_and_over_an_exception(small: Open) -> None:
    async with small() as sandbox:
        await sandbox.execute("x = 1")
        failed = await sandbox.execute("y = x + 1\nraise ValueError('no')\nz = 3")
        after = await sandbox.execute("print(x, y, 'z' in globals())")
    assert failed.outcome is Outcome.USER_ERROR
    assert failed.error is not None
    assert (failed.error.type, failed.error.message) == ("ValueError", "no")
    assert 'File "<cell 2>", line 2' in failed.error.traceback
    assert "raise ValueError('no')" in failed.error.traceback
    assert "sandbox_image" not in failed.error.traceback
    assert not failed.state_lost
    assert after.stdout == "1 2 False\n"


async def test_streams_are_apart_and_whole(small: Open) -> None:
    code = (
        "import sys, subprocess\nprint('a')\nsubprocess.run(['echo', 'b'])\nprint('c')\n"
        "print('é\\ud800', file=sys.stderr)"
    )
    async with small() as sandbox:
        result = await sandbox.execute(code)
        raw = await sandbox.execute("import os; n = os.write(1, b'\\xff\\x00ok')")
    assert result.stdout == "a\nb\nc\n"
    assert result.stderr == "é\\ud800\n"
    assert raw.stdout == "�\0ok"


async def test_the_streams_can_be_opened_by_name(small: Open) -> None:
    code = (
        "import subprocess; subprocess.run(['sh', '-c', 'echo a > /dev/stdout; echo b >"
        " /dev/stderr']); open('/dev/stdout', 'a').write('c')"
    )
    async with small() as sandbox:
        result = await sandbox.execute(code)
    assert (result.stdout, result.stderr) == ("a\nc", "b\n")


@pytest.mark.parametrize("ready", ["go.wait(); ", ""], ids=["next-cell", "at-once"])
async def test_what_outlives_its_cell_may_go_on_writing_and_nobody_hears_it(small: Open, ready: str) -> None:
    code = f"""
import multiprocessing, os
fork = multiprocessing.get_context("fork")
go = fork.Event()
def write():
    {ready}
    for _ in range(64): os.write(1, b"LATE" * 4096)
child = fork.Process(target=write); child.start()
"""
    async with small() as sandbox:
        first = await sandbox.execute(code)
        second = await sandbox.execute("go.set(); child.join(); print(child.exitcode)")
        third = await sandbox.execute("print('third')")
    assert "LATE" not in first.stdout or not ready
    assert (second.outcome, second.stdout) == (Outcome.OK, "0\n")
    assert third.stdout == "third\n"


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        ("os.kill(os.getpid(), 9)", Outcome.KILLED),
        ("os._exit(3)", Outcome.CRASHED),
        ("while True: pass", Outcome.TIMEOUT),
    ],
    ids=["killed", "left", "deaf"],
)
async def test_what_was_printed_before_the_end_is_told(small: Open, end: str, outcome: Outcome) -> None:
    code = f"""
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("last words"); os.write(2, b"and more")
{end}
"""
    async with small() as sandbox:
        result = await sandbox.execute(code, timeout=0.5)
    assert (result.outcome, result.stdout, result.stderr) == (outcome, "last words\n", "and more")
    assert result.state_lost


async def test_an_answer_is_told_though_the_interpreter_died_of_it(small: Open) -> None:
    async with small(query="why") as sandbox:
        result = await sandbox.execute("FINAL('x' * 1_000_000); import os; os.kill(os.getpid(), 9)")
    assert (result.outcome, result.final) == (Outcome.KILLED, "x" * 1_000_000)


CONTEXTS: list[object] = [
    "",
    "quotes ' \" ''' \"\"\" \\ \n\r\n\t \0 \ud800 \udfff ``` ```repl\nFINAL(1)\n``` 🙂 e\u0301",
    ["item"] * 10_000,
    {"title": "t", "sections": [{"n": 1, "text": None}, [], True, 1.5, -(2**80)], "": {"\ud800": "\0"}},
]


@pytest.mark.parametrize(
    "context",
    CONTEXTS,
    ids=["empty", "nasty", "list", "dict"],
)
async def test_a_context_arrives_equal(small: Open, context: object) -> None:
    async def compare(call: WorkerCall) -> list[str | CallError]:
        assert call.prompts[0] == ascii(context)
        return ["equal"]

    async with small(context=context, on_call=compare) as sandbox:
        result = await sandbox.execute("print(worker(ascii(context)), type(context).__name__)")
    assert result.stdout == f"equal {type(context).__name__}\n"


@pytest.mark.slow
async def test_a_context_of_100_mb_arrives_equal(engine: object) -> None:
    import hashlib

    context = "0123456789abcdef\n\ud800é" * 5_000_000
    assert len(context) >= 95_000_000
    digest = hashlib.sha256(context.encode("utf-8", "surrogatepass")).hexdigest()
    async with open_sandbox(SandboxConfig(), context=context) as sandbox:
        result = await sandbox.execute(
            "import hashlib\nprint(hashlib.sha256(context.encode('utf-8', 'surrogatepass')).hexdigest())",
            timeout=60,
        )
    assert result.stdout.strip() == digest, result


async def test_worker_calls_answer_in_order_from_any_thread(small: Open) -> None:
    code = """
import threading
many = [str(i) for i in range(600)]
print(worker("a"), worker_batch(many) == many, worker_batch([]))
got = {}
threads = [threading.Thread(target=lambda i=i: got.update({i: worker(f"t{i}")})) for i in range(20)]
for t in threads: t.start()
for t in threads: t.join()
print(got == {i: f"T{i}" for i in range(20)})
"""
    async with small(on_call=echo) as sandbox:
        result = await sandbox.execute(code)
    assert result.stdout == "A True []\nTrue\n", result


async def test_a_failed_call_is_typed_and_a_batch_keeps_what_succeeded(small: Open) -> None:
    async def some_fail(call: WorkerCall) -> list[str | CallError]:
        return [CallError("unavailable", "down") if p == "bad" else p for p in call.prompts]

    code = """
try:
    worker("bad")
except WorkerError as error:
    print(error.code, error.message)
try:
    worker_batch(["a", "bad", "c"])
except WorkerBatchError as error:
    print([r if isinstance(r, str) else r.code for r in error.results], error)
print([r if isinstance(r, str) else r.code for r in worker_batch(["bad", "b"], return_errors=True)])
"""
    async with small(on_call=some_fail) as sandbox:
        result = await sandbox.execute(code)
    assert result.stdout == (
        "unavailable down\n"
        "['a', 'unavailable', 'c'] unavailable: 1 of 3 calls failed, the first with unavailable: down\n"
        "['unavailable', 'b']\n"
    ), result


async def test_prompts_are_checked_before_they_are_sent(small: Open) -> None:
    seen: list[str] = []

    async def note(call: WorkerCall) -> list[str | CallError]:
        seen.extend(call.prompts)
        return call.prompts  # pyright: ignore[reportReturnType]  # a list is invariant

    code = """
for wrong in (5, None, b"x"):
    try:
        worker(wrong)
    except TypeError as error:
        print(error)
try:
    worker_batch("abc")
except TypeError as error:
    print(error)
print([getattr(r, "code", r) for r in worker_batch(["x" * 70_000, "ok"], return_errors=True)])
class Odd(str):
    def __len__(self): return 0
    def __str__(self): return "lies"
print(worker(Odd("truth")), ascii(worker("lone \\ud800 end")))
"""
    async with small(on_call=note, prompt="64KiB") as sandbox:
        result = await sandbox.execute(code)
    assert "a prompt must be a str; number 0 is of type int" in result.stdout
    assert "worker_batch takes a list of prompts" in result.stdout
    assert "['too_long', 'ok']" in result.stdout
    assert "truth 'lone \\ufffd end'" in result.stdout
    assert seen == ["ok", "truth", "lone � end"]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("'plain'", "plain"),
        ("42", "42"),
        ("1.5", "1.5"),
        ("True", "True"),
        ("None", "None"),
        ("{'a': [1, 'é']}", '{"a": [1, "é"]}'),
        ("('x', 2)", '["x", 2]'),
        ("'\\ud800'", "�"),
    ],
)
async def test_final_takes_text_and_plain_data(small: Open, answer: str, text: str) -> None:
    async with small(query="why") as sandbox:
        result = await sandbox.execute(f"FINAL({answer})")
    assert (result.outcome, result.final) == (Outcome.OK, text)


async def test_what_final_cannot_take_is_the_cells_error_and_may_be_tried_again(small: Open) -> None:
    code = """
loop = []; loop.append(loop)
for wrong in (loop, object(), {1, 2}, print, 'x' * (9 << 20)):
    try:
        FINAL(wrong)
    except (TypeError, ValueError) as error:
        print(type(error).__name__, str(error)[:60])
FINAL('at last')
"""
    async with small(query="why") as sandbox:
        result = await sandbox.execute(code)
    assert result.final == "at last"
    assert result.stdout.count("Error FINAL takes") == 5, result


async def test_the_first_final_stands_and_only_execution_counts(small: Open) -> None:
    async with small(query="why") as sandbox:
        comment = await sandbox.execute("# FINAL('comment')\ns = \"FINAL('text')\"\nprint(s)")
        twice = await sandbox.execute("FINAL('one')\nFINAL('two')\nprint('ran on')")
        again = await sandbox.execute("FINAL('three')")
    assert comment.final is None
    assert twice.final == "one"
    assert twice.stdout == "ran on\n"
    assert "the first answer stands" in twice.stderr
    assert again.final == "three"


async def test_final_from_a_child_process_is_refused_there(small: Open) -> None:
    code = """
import os
pid = os.fork()
if pid == 0:
    try:
        FINAL('child')
    except RuntimeError as error:
        os.write(1, str(error).encode())
    os._exit(0)
os.waitpid(pid, 0)
"""
    async with small(query="why") as sandbox:
        result = await sandbox.execute(code)
        after = await sandbox.execute("FINAL('parent')")
    assert result.final is None
    assert "only in the process of the cell" in result.stdout
    assert after.final == "parent"


async def test_primitives_are_put_back_before_each_cell(small: Open) -> None:
    async with small(context="doc", query="why", on_call=echo) as sandbox:
        await sandbox.execute(
            "worker = FINAL = None; context = 5; del query, worker_batch; import builtins; print = None"
        )
        result = await sandbox.execute(
            'import sys; sys.stdout.write(f\'{context} {query} {worker("x")} {worker_batch(["y"])}\')'
        )
    assert result.stdout == "doc why X ['Y']"


@pytest.mark.parametrize("name", ["eval", "exec", "compile", "input"])
async def test_blocked_builtins_say_what_to_do_instead(small: Open, name: str) -> None:
    async with small(query="why") as sandbox:
        result = await sandbox.execute(f"{name}('1')")
        library = await sandbox.execute("import collections; print(collections.namedtuple('P', 'x')(1))")
    assert result.error is not None
    assert result.error.message.startswith(f"{name}() ")
    assert library.stdout == "P(x=1)\n", "libraries keep the real ones"


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "raise SystemExit", "exit()", "quit(1)"])
async def test_leaving_is_an_error_of_the_cell_and_nothing_more(small: Open, code: str) -> None:
    async with small() as sandbox:
        result = await sandbox.execute(code)
        after = await sandbox.execute("print('alive')")
    assert result.outcome is Outcome.USER_ERROR
    assert after.stdout == "alive\n"


@pytest.mark.parametrize("code", ["x = = 1", "def f(:", "\0", "if x:\nprint()", "return 5", "(" * 500])
async def test_code_that_does_not_compile_is_an_error_of_the_cell(small: Open, code: str) -> None:
    async with small() as sandbox:
        result = await sandbox.execute(code)
    assert result.outcome is Outcome.USER_ERROR
    assert result.error is not None
    assert result.error.type in ("SyntaxError", "IndentationError", "ValueError", "MemoryError", "NameError")


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import threading; threading.Event().wait()",
        "import os; os.read(os.pipe()[0], 1)",
    ],
)
async def test_a_timeout_interrupts_and_keeps_output_and_state(small: Open, code: str) -> None:
    async with small() as sandbox:
        await sandbox.execute("kept = 1")
        result = await sandbox.execute(f"print('before')\n{code}", timeout=0.2)
        after = await sandbox.execute("print(kept)")
    assert (result.outcome, result.stdout, result.state_lost) == (Outcome.TIMEOUT, "before\n", False)
    assert result.error is not None
    assert result.error.type == "KeyboardInterrupt"
    assert after.stdout == "1\n"


@pytest.mark.timing
@pytest.mark.parametrize(
    "code",
    [
        "while True:\n  try:\n    for x in iter(int, 1): x += 1\n  except BaseException: pass",
        "sum(range(10**13))",
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        (
            "import os, signal\nfor _ in range(5): os.fork()\nwhile True:\n  try:\n"
            "    for x in iter(int, 1): x += 1\n  except BaseException: pass"
        ),
    ],
    ids=["catches", "c-code", "ignores", "blocks", "forks"],
)
async def test_what_does_not_stop_is_killed_with_all_its_children(small: Open, code: str) -> None:
    async with small() as sandbox:
        result = await sandbox.execute(f"print('before')\n{code}", timeout=0.3)
        assert (result.outcome, result.stdout, result.state_lost) == (Outcome.TIMEOUT, "before\n", True)
        assert result.detail == "did not stop when interrupted; its variables are lost: call reset()"
        assert result.elapsed < 0.3 + 0.3 + 2
        with pytest.raises(SandboxLost, match="reset"):
            await sandbox.execute("print(1)")
        await sandbox.reset()
        fresh = await sandbox.execute("print('code' in globals())")
    assert fresh.stdout == "False\n"


@pytest.mark.timing
@pytest.mark.parametrize(
    ("code", "outcome", "detail"),
    [
        ("import os; os._exit(0)", Outcome.CRASHED, "left with status 0"),
        ("import os; os._exit(7)", Outcome.CRASHED, "left with status 7"),
        ("import os; os.abort()", Outcome.CRASHED, "SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", Outcome.CRASHED, "SIGSEGV"),
        ("import os; os.execv('/bin/true', ['true'])", Outcome.CRASHED, "left with status 0"),
        ("import os, signal; os.kill(os.getpid(), 9)", Outcome.KILLED, "SIGKILL"),
        ("import os; os.closerange(0, 256)", Outcome.CRASHED, "left with status 1"),
        ("import os, time; os.closerange(3, 256); time.sleep(60)", Outcome.CRASHED, "closed its stream"),
    ],
)
async def test_a_death_is_told_at_once_and_truthfully(
    small: Open, code: str, outcome: Outcome, detail: str
) -> None:
    async with small() as sandbox:
        result = await sandbox.execute(f"import sys; print('before'); sys.stdout.flush()\n{code}")
        assert (result.outcome, result.state_lost) == (outcome, True), result
        assert result.stdout == "before\n"
        assert detail in result.detail
        assert result.elapsed < 2
        with pytest.raises(SandboxLost):
            await sandbox.execute("1")


async def test_waiting_for_a_worker_does_not_count_as_the_cells_time(small: Open) -> None:
    async def slow(call: WorkerCall) -> list[str | CallError]:
        await asyncio.sleep(0.6)
        return ["done"]

    async with small(on_call=slow) as sandbox:
        result = await sandbox.execute("print(worker('x'))", timeout=0.3)
    assert (result.outcome, result.stdout) == (Outcome.OK, "done\n")
    assert result.worker_wait >= 0.55


async def test_calls_of_an_ended_cell_are_cancelled(small: Open) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(call: WorkerCall) -> list[str | CallError]:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return []

    code = (
        "import threading\nthreading.Thread(target=worker, args=('x',), daemon=True).start()\n"
        "import time\ntime.sleep(0.1)\nFINAL(1)"
    )
    async with small(on_call=hang) as sandbox:
        result = await sandbox.execute(code)
        assert result.final == "1"
        await asyncio.wait_for(started.wait(), 5)
        await asyncio.wait_for(cancelled.wait(), 5)
        assert (await sandbox.execute("print('alive')")).stdout == "alive\n"


async def test_output_over_the_limit_is_cut_and_ends_the_cell(small: Open) -> None:
    async with small(output="64KiB") as sandbox:
        flood = await sandbox.execute("while True: print('x' * 1000)")
        after = await sandbox.execute("print('alive')")
        line = await sandbox.execute("import sys; sys.stdout.write('y' * 1_000_000)")
    assert (flood.outcome, flood.truncated, flood.state_lost) == (Outcome.OUTPUT_LIMIT, True, False)
    assert len(flood.stdout) == 64 << 10
    assert flood.detail == (
        "more than 65536 bytes of output: print less, or raise SandboxConfig(output=...); "
        "the variables are kept"
    )
    assert after.stdout == "alive\n"
    assert line.outcome is Outcome.OUTPUT_LIMIT
    assert line.stdout == "y" * (64 << 10)


async def test_fifty_megabytes_are_kept_where_they_are_allowed(small: Open) -> None:
    async with small(output="64MiB", timeout=60.0) as sandbox:
        result = await sandbox.execute("for i in range(50): print(str(i % 10) * ((1 << 20) - 1))")
    assert result.outcome is Outcome.OK
    assert len(result.stdout) == 50 << 20


async def test_late_output_never_appears_in_the_next_cell(small: Open) -> None:
    code = """
import subprocess, threading
go = threading.Event()
def late():
    go.wait(); print('LATE thread', flush=True); done.set()
done = threading.Event()
threading.Thread(target=late).start()
child = subprocess.Popen(['sh', '-c', 'read x; echo LATE child'], stdin=subprocess.PIPE)
"""
    async with small() as sandbox:
        assert (await sandbox.execute(code)).outcome is Outcome.OK
        second = await sandbox.execute("go.set(); done.wait(); child.communicate(b'x\\n'); print('own')")
    assert second.stdout == "own\n"


@pytest.mark.parametrize("closed", ["1", "2", "0, 1, 2", "1, 2"])
async def test_a_cell_that_closes_its_streams_costs_the_next_one_nothing(small: Open, closed: str) -> None:
    async with small() as sandbox:
        for _ in range(3):
            await sandbox.execute(f"import os\nfor fd in ({closed},): os.close(fd)")
            after = await sandbox.execute("import sys; print('out'); print('err', file=sys.stderr)")
            assert (after.stdout, after.stderr) == ("out\n", "err\n")


async def test_a_second_cell_at_once_and_use_after_close_are_errors(small: Open) -> None:
    async with small() as sandbox:
        first = asyncio.create_task(sandbox.execute("import time; time.sleep(0.3); print('one')"))
        await asyncio.sleep(0)
        with pytest.raises(SandboxError, match="a cell is running"):
            await sandbox.execute("print('two')")
        with pytest.raises(SandboxError, match="a cell is running"):
            await sandbox.reset()
        assert (await first).stdout == "one\n"
    await sandbox.close()
    with pytest.raises(SandboxError, match="closed"):
        await sandbox.execute("1")


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
async def test_an_absurd_timeout_is_refused(small: Open, timeout: float) -> None:
    async with small() as sandbox:
        with pytest.raises(ValueError, match="timeout"):
            await sandbox.execute("1", timeout=timeout)


async def test_a_cancelled_cell_is_stopped_and_the_sandbox_goes_on(small: Open) -> None:
    async with small() as sandbox:
        await sandbox.execute("kept = 5")
        running = asyncio.create_task(sandbox.execute("while True: pass"))
        await asyncio.sleep(0.1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await sandbox.execute("print(kept)")).stdout == "5\n"


async def test_an_interrupt_right_after_the_start_is_not_lost(small: Open) -> None:
    async with small() as sandbox:
        for _ in range(20):
            running = asyncio.create_task(sandbox.execute("import time\nwhile True: time.sleep(0.01)"))
            await asyncio.sleep(0)
            await sandbox.interrupt()
            result = await running
            assert (result.outcome, result.state_lost) == (Outcome.KILLED, False)


@pytest.mark.timing
async def test_threads_that_keep_calling_do_not_stop_the_clock_for_ever(small: Open) -> None:
    code = """
import threading
def call():
    while True: worker('x')
for _ in range(2): threading.Thread(target=call, daemon=True).start()
while True: x = 1
"""

    async def slow(call: WorkerCall) -> list[str | CallError]:
        await asyncio.sleep(0.1)
        return ["y"]

    async with small(on_call=slow, wall=1.0) as sandbox:
        result = await sandbox.execute(code, timeout=0.5)
    assert result.outcome is Outcome.TIMEOUT
    assert 0.9 < result.elapsed < 3


async def test_a_thread_of_an_earlier_cell_speaks_for_no_later_one(small: Open) -> None:
    code = """
import threading
go, said = threading.Event(), []
def late():
    go.wait()
    for act in (lambda: worker('stale'), lambda: FINAL('stale')):
        try: said.append(act())
        except Exception as error: said.append(str(error))
thread = threading.Thread(target=late); thread.start()
"""
    async with small(on_call=echo) as sandbox:
        await sandbox.execute(code)
        result = await sandbox.execute("go.set(); thread.join(); print(said); print(worker('own'))")
    assert result.final is None
    assert "the cell of this call has ended" in result.stdout
    assert result.stdout.endswith("OWN\n")


async def test_a_pool_works_for_the_cell_that_hands_it_work(small: Open) -> None:
    async with small(on_call=echo) as sandbox:
        await sandbox.execute(
            "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)\n"
            "pool.submit(print, 1).result()"
        )
        result = await sandbox.execute("pool.submit(print, 2).result(); print(list(pool.map(worker, 'ab')))")
    assert result.stdout == "2\n['A', 'B']\n"


@pytest.mark.parametrize(
    "answer", [["x" * (70 << 20)], [None], ["a", "b"]], ids=["too large", "no text", "too many"]
)
async def test_whatever_on_call_gives_the_cell_gets_a_reply_or_its_caller_an_error(
    small: Open, answer: list[str]
) -> None:
    async def give(call: WorkerCall) -> list[str | CallError]:
        return answer  # pyright: ignore[reportReturnType]  # wrong on purpose

    async with small(on_call=give) as sandbox:
        try:
            result = await asyncio.wait_for(sandbox.execute("print(worker('x'))"), 10)
        except LocalProtocolError:
            return
    assert result.error is not None
    assert "too large to be passed on" in result.error.message


async def test_a_call_that_somebody_else_cancels_is_an_error_of_the_call(small: Open) -> None:
    async def cancelled(call: WorkerCall) -> list[str | CallError]:
        raise asyncio.CancelledError

    async with small(on_call=cancelled) as sandbox:
        result = await asyncio.wait_for(sandbox.execute("worker('x')"), 10)
    assert result.error is not None
    assert result.error.message == "cancelled: the call was cancelled"


async def test_nothing_is_paid_for_where_one_prompt_is_no_text(small: Open) -> None:
    asked: list[str] = []

    async def count(call: WorkerCall) -> list[str | CallError]:
        asked.extend(call.prompts)
        return list(call.prompts)

    async with small(on_call=count) as sandbox:
        result = await sandbox.execute("worker_batch(['a'] * 600 + [None])")
    assert result.outcome is Outcome.USER_ERROR
    assert asked == []


async def test_small_limits_on_prompts_do_not_touch_output_errors_and_answers(small: Open) -> None:
    async with small(query="why", prompt="1KiB") as sandbox:
        printed = await sandbox.execute("print('x' * 100_000)")
        final = await sandbox.execute("FINAL('y' * 100_000)")
        failed = await sandbox.execute("raise ValueError('z' * 100_000)")
    assert (len(printed.stdout), len(final.final or ""), failed.outcome) == (
        100_001,
        100_000,
        Outcome.USER_ERROR,
    )


async def test_resets_and_closes_at_once_queue_up(small: Open) -> None:
    async with small() as sandbox:
        await asyncio.wait_for(asyncio.gather(sandbox.reset(), sandbox.reset()), 20)
        resetting = asyncio.create_task(sandbox.reset())
        await asyncio.sleep(0)
        with pytest.raises(SandboxError, match="being reset"):
            await sandbox.execute("1")
        await resetting
        assert (await sandbox.execute("print(1)")).stdout == "1\n"
        await asyncio.wait_for(asyncio.gather(sandbox.close(), sandbox.close()), 20)


async def test_a_query_may_hold_anything(small: Open) -> None:
    async with small(query="why \ud800?") as sandbox:
        assert (await sandbox.execute("print(query)")).stdout == "why \ufffd?\n"


async def test_an_interrupt_stops_the_cell_that_runs(small: Open) -> None:
    async with small() as sandbox:
        running = asyncio.create_task(sandbox.execute("print('in'); import time; time.sleep(60)"))
        await asyncio.sleep(0.2)
        await sandbox.interrupt()
        result = await running
        await sandbox.interrupt()
        after = await sandbox.execute("print('alive')")
    assert (result.outcome, result.state_lost, result.stdout) == (Outcome.KILLED, False, "in\n")
    assert after.stdout == "alive\n"


async def test_an_interrupt_never_hits_the_next_cell(small: Open) -> None:
    """The race of a timeout with the cell's own end, many times over."""
    outcomes: set[Outcome] = set()
    async with small() as sandbox:
        for turn in range(60):
            raced = await sandbox.execute("import time; time.sleep(0.02)", timeout=0.0195 + turn * 2e-5)
            outcomes.add(raced.outcome)
            quick = await sandbox.execute("for i in range(2000): pass\nprint('quick')")
            assert (quick.outcome, quick.stdout) == (Outcome.OK, "quick\n")
    assert outcomes <= {Outcome.OK, Outcome.TIMEOUT}


async def test_a_reset_leaves_nothing_of_the_old_session(small: Open, backend: dict[str, Any]) -> None:
    code = (
        "open('/work/f', 'w').write('x'); open('/tmp/f', 'w').write('x'); import subprocess;"
        " subprocess.Popen(['sleep', '1000'])"
    )
    async with small(context="doc") as sandbox:
        await sandbox.execute(code)
        await sandbox.reset()
        result = await sandbox.execute(
            "import os; print(os.listdir('/work'), os.listdir('/tmp'), len([p for p in"
            " os.listdir('/proc') if p.isdecimal()]), context)"
        )
    visible = 1 if backend["backend"] == "process" else 2
    assert result.stdout == f"[] [] {visible} doc\n", (
        "only the interpreter; a container's init can be seen, too"
    )


async def test_the_isolation_is_measured_from_inside(small: Open, backend: dict[str, Any]) -> None:
    async with small() as sandbox:
        isolation = sandbox.isolation
        seen = await sandbox.execute(
            "import os, socket\nprint(os.getuid(), socket.gethostname(), sorted(os.environ), os.getcwd())\n"
            "try:\n    open('/etc/x', 'w')\nexcept OSError as e: print(e.errno)\n"
            "print([p for p in ('/root', '/home', '/host', '/sys', '/hostlib', '/var') if os.path.exists(p)])"
        )
    # CI's runsc ignores control groups (scripts/dockerd); nothing else may be missing there.
    assert isolation.limited or isolation.backend == "docker/runsc"
    assert len(isolation.missing()) == (not isolation.limited)
    who, refusal, paths = seen.stdout.splitlines()
    if backend["backend"] == "process":
        assert isolation.namespaces == ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
        names = ["HOME", "LANG", "MPLBACKEND", "MPLCONFIGDIR", "PATH", "PYTHONPATH", "TMPDIR", "USER"]
        assert who == f"65534 sandbox {names} /work"
        assert (refusal, paths) == ("30", "[]")
    else:  # the image has a system of its own, and gVisor looks at rights first
        assert isolation.shared_namespaces() == []
        assert who.startswith("65534 sandbox ['HOME', 'HOSTNAME', 'LANG', ")
        assert refusal in ("30", "13")
        assert "/host" not in paths


async def test_a_failing_on_call_is_raised_to_whoever_runs_the_cell(small: Open) -> None:
    async def broken(call: WorkerCall) -> list[str | CallError]:
        raise RuntimeError("the host's own bug")

    async with small(on_call=broken) as sandbox:
        with pytest.raises(RuntimeError, match="own bug"):
            await sandbox.execute("worker('x')")
        with pytest.raises(SandboxLost):
            await sandbox.execute("1")
        await sandbox.reset()
        assert (await sandbox.execute("print(1)")).stdout == "1\n"


async def test_many_sandboxes_at_once_do_not_mix(engine: object) -> None:
    async def one(number: int) -> str:
        async def answer(call: WorkerCall) -> list[str | CallError]:
            return [f"{number}:{prompt}" for prompt in call.prompts]

        async with open_sandbox(context=f"c{number}", on_call=answer) as sandbox:
            result = await sandbox.execute("print(context, worker('x'), worker_batch(['a', 'b']))")
            return result.stdout

    results = await asyncio.gather(*(one(number) for number in range(20)))
    assert results == [f"c{n} {n}:x ['{n}:a', '{n}:b']\n" for n in range(20)]


async def test_files_are_listed_by_name_and_size_whatever_lies_between_them(small: Open) -> None:
    code = """
import os, socket
os.makedirs('deep/er'); os.mkdir('empty'); os.mkfifo('pipe')
os.symlink('/etc/passwd', 'link'); os.symlink('/', 'root')
socket.socket(socket.AF_UNIX).bind('socket')
for name in ('b', 'a', 'deep/er/c', b'\\xff'):
    with open(name, 'w') as file: file.write('xyz')
os.mkdir('shut', 0)
"""
    async with small() as sandbox:
        assert (await sandbox.list()).files == ()
        assert (await sandbox.execute(code)).error is None
        listing = await sandbox.list()
        assert [(file.path, file.size) for file in listing.files] == [
            ("a", 3),
            ("b", 3),
            ("\ufffd", 3),
            ("deep/er/c", 3),
        ]
        assert not listing.more
        some = await sandbox.list(most=2)
        assert ([file.path for file in some.files], some.more) == (["a", "b"], True)


async def test_a_list_of_files_without_end_is_cut(small: Open) -> None:
    """Too many, too deep, and too long names: the answer is short, and comes in time."""
    code = """
import os
for number in range(3000): open('n' * 240 + str(number), 'w').close()
for number in range(3000):
    try: os.mkdir('d'); os.chdir('d')
    except OSError: break
open('bottom', 'w').close()
"""
    async with small(timeout=20.0) as sandbox:
        assert (await sandbox.execute(code)).error is None
        listing = await sandbox.list(most=100_000)
        assert sum(len(file.path) for file in listing.files) <= protocol.LISTING_CHARS
        assert 2000 < len(listing.files) <= 3001
        assert listing.more, "the deepest folders have too long paths"
        assert (await sandbox.execute("1 + 1")).error is None


async def test_what_keeps_a_stream_of_an_earlier_cell_prints_in_the_cell_that_runs(small: Open) -> None:
    keep = """
import logging, pprint, sys
logging.basicConfig(level=logging.INFO)
saved, raw, printer = sys.stdout, sys.stdout.buffer, pprint.PrettyPrinter()
def say(text, file=sys.stdout): print(text, file=file)
"""
    use = "logging.info('log'); saved.write('a\\n'); printer.pprint([1]); say('b'); n = raw.write(b'c\\n')"
    async with small() as sandbox:
        await sandbox.execute(keep)
        for _ in range(2):
            result = await sandbox.execute(use)
            assert (result.stdout, result.stderr) == ("a\n[1]\nb\nc\n", "INFO:root:log\n"), result


@pytest.mark.parametrize(
    "harm",
    [
        "os.close(1)\nprint('lost')",
        "os.dup2(os.open('/dev/null', os.O_WRONLY), 1); print('lost')",
        "sys.stdout.close()\nprint('lost')",
        "sys.stdout = sys.__stdout__ = None",
        "io.FileIO.close(sys.stdout.buffer.raw)\nprint('lost')",
        "io.TextIOWrapper.detach(sys.stdout)",
        "sys.stdout = io.TextIOWrapper(sys.stdout.buffer)",
        "sys.stdout.reconfigure(encoding='utf-16')",
        "sys.stdout.write = None",
        "redirect = contextlib.redirect_stdout(io.StringIO()); redirect.__enter__(); print('lost')",
    ],
)
async def test_what_a_cell_does_to_its_streams_harms_no_other_cell(small: Open, harm: str) -> None:
    async with small() as sandbox:
        await sandbox.execute("import contextlib, gc, io, os, sys; saved = sys.stdout")
        harmed = await sandbox.execute(harm)
        after = await sandbox.execute("gc.collect(); print('next'); n = saved.write('é')")
    assert "lost" not in harmed.stdout + after.stdout
    assert (after.outcome, after.stdout) == (Outcome.OK, "next\né"), after


async def test_a_name_of_a_run_exists_only_where_it_was_passed(small: Open) -> None:
    look = "print(*(n for n in ('context', 'query', 'worker', 'FINAL', 'WorkerError') if n in globals()))"
    async with small() as plain, small(context="") as document, small(query="") as asked:
        assert (await plain.execute(look)).stdout == "\n"
        assert (await document.execute(look)).stdout == "context\n"
        assert (await asked.execute(look)).stdout == "query FINAL\n"
    async with small(on_call=echo) as working:
        assert (await working.execute(look)).stdout == "worker FINAL WorkerError\n"


async def test_without_a_run_these_names_are_the_users(small: Open) -> None:
    async with small(context="document") as sandbox:
        await sandbox.execute("query, context, FINAL = 'SELECT 1', [1], 3\ndef worker(x): return 2 * x")
        result = await sandbox.execute("print(query, context, FINAL, worker(4), eval('5'))\nexec('x = 6'); x")
    assert result.stdout == "SELECT 1 [1] 3 8 5\n", result


async def test_a_cell_is_a_script_as_python_runs_it(small: Open) -> None:
    """Builtins are the module, own modules can be imported, help has no pager, nothing names the host."""
    code = """
import builtins, helper, inspect, pickle, sys
class C: pass
def f(): return 1
print(helper.X, __name__, __builtins__ is builtins, sys.argv, type(pickle.loads(pickle.dumps(C()))) is C)
print(inspect.getsource(f), end="")
try: input()
except EOFError as error: print("no terminal" in str(error))
builtins.shout = str.upper
"""
    async with small() as sandbox:
        await sandbox.put("helper.py", b"X = 42")
        result = await sandbox.execute(code)
        later = await sandbox.execute("print(shout('a')); help(len)")
    assert result.stdout == "42 __main__ True [''] True\ndef f(): return 1\nTrue\n", result
    assert later.stdout.startswith("A\nHelp on built-in function len")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("FINAL(1, 2)", "FINAL() takes one answer, not 2: write FINAL(answer)"),
        ("FINAL()", "FINAL() takes one answer, not none"),
        ("FINAL({'a': float('nan')})", "nan or inf"),
        ("FINAL([1, (float('-inf'),)])", "pass None or text instead"),
        ("FINAL({float('nan'): 1})", "nan or inf"),
        ("FINAL(float('nan'))", "FINAL takes a finite number, not nan: pass None or text instead"),
        ("FINAL(1e999)", "not inf: pass None or text"),
        ("from decimal import Decimal; FINAL(Decimal('sNaN'))", "not sNaN: pass None or text"),
        ("FINAL([{1}])", "sorted("),
        ("FINAL(b'x')", ".decode()"),
        ("worker('a', temperature=0)", "only the prompt, not temperature: the host chooses"),
        ("worker('a', 'b')", "use worker_batch("),
        ("worker(['a'])", "use worker_batch("),
        ("worker_batch(5)", "takes a list of prompts, not int"),
        ("import no_such_package", "no network to install it"),
        ("open('paper.pdf')", "`context`"),
        ("open('big', 'wb').write(bytes(100 << 20))", "disk is full"),
        (
            (
                "from concurrent.futures import ProcessPoolExecutor\n"
                "with ProcessPoolExecutor(1) as pool: list(pool.map(worker, ['a']))"
            ),
            "use worker_batch(prompts)",
        ),
    ],
)
async def test_an_error_says_what_to_do_and_names_nothing_of_ours(small: Open, code: str, says: str) -> None:
    async with small(context="document", query="why", on_call=echo) as sandbox:
        result = await sandbox.execute(code)
    assert result.error is not None
    assert says in result.error.message
    for word in ("supdist", "Primitives", "select.poll"):
        assert word not in result.error.message + result.error.traceback


async def test_the_errors_of_calls_are_named_as_cells_name_them(small: Open) -> None:
    async with small(on_call=echo) as sandbox:
        result = await sandbox.execute("import copy\nraise copy.copy(WorkerError('too_long', 'no'))")
    assert result.error is not None
    assert result.error.traceback.endswith("\nWorkerError: too_long: no\n")


async def test_a_timeout_says_after_how_long(small: Open) -> None:
    async with small() as sandbox:
        result = await sandbox.execute("while True: pass", timeout=0.2)
    assert "stopped after 0.2 s" in result.detail
