"""The loop, on real sandboxes, with scripted models."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from process_support import guest_processes_named, zygotes
from support import SMALL_CONFIG, block, read_events, upper_worker

from supdist.engine import LogError, Prompts, RunLimits, RunResult, TaskError, arun, run
from supdist.engine.events import Event, Metrics, RunEnded, RunStarted, SupervisorWrote
from supdist.handlers import (
    Completion,
    HandlerError,
    Message,
    ModelHandler,
    Rejected,
    ScriptedHandler,
    Unavailable,
    Usage,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("engine")]


async def answer(
    *replies: str | HandlerError, worker: ModelHandler | None = None, **options: Any
) -> tuple[RunResult, ScriptedHandler]:
    supervisor = ScriptedHandler(replies)
    options = {"query": "why?", "context": "the document", "sandbox": SMALL_CONFIG, **options}
    result = await arun(supervisor=supervisor, worker=worker or upper_worker(), **options)
    return result, supervisor


async def test_a_question_is_answered_and_everything_is_counted() -> None:
    result, supervisor = await answer(block("print(context, query)"), block("r = worker('ab c')\nFINAL(r)"))
    assert (result.answer, result.iterations, result.stop_reason) == ("AB C", 2, "final")
    assert result.worker_usage == Usage(2, 2, 1)
    assert result.supervisor_usage.calls == 2
    assert result.isolation.missing() == []
    assert result.elapsed > 0
    last = supervisor.calls[-1]
    assert [message["role"] for message in last] == ["system", "user", "assistant", "user"]
    assert "the document why?" in last[-1]["content"]
    assert "13 turns are left" not in last[-1]["content"]
    assert "14 turns are left." in last[-1]["content"]


async def test_blocks_stop_at_the_first_that_raises() -> None:
    result, supervisor = await answer(
        block("a = 1") + "\n" + block("b = 2; 1/0") + "\n" + block("c = 3"),
        block("FINAL(f\"{a} {b} {'c' in globals()}\")"),
    )
    assert result.answer == "1 2 False"
    shown = supervisor.calls[1][-1]["content"]
    assert "ZeroDivisionError" in shown
    assert "[1 further block not executed]" in shown


async def test_a_block_after_final_is_not_run() -> None:
    result, _ = await answer(block("FINAL('one')") + "\n" + block("FINAL('two')"))
    assert (result.answer, result.iterations) == ("one", 1)


async def test_a_message_without_a_block_is_told_so() -> None:
    result, supervisor = await answer("I think FINAL(42).", block("FINAL(1)"))
    assert "held no ```repl block" in supervisor.calls[1][-1]["content"]
    assert (result.answer, result.iterations) == ("1", 2)


async def test_at_the_limit_the_best_answer_is_asked_for_once() -> None:
    result, supervisor = await answer(block("print('evidence')"), "  It is 7.\n", max_iterations=1)
    assert (result.answer, result.iterations, result.stop_reason) == ("It is 7.", 1, "max_iterations")
    assert "evidence" in supervisor.calls[1][-1]["content"]
    assert "all turns are used" in supervisor.calls[1][-1]["content"]
    assert [message["role"] for message in supervisor.calls[1]].count("user") == 2


async def test_the_best_answer_may_come_by_final_too() -> None:
    result, _ = await answer(block("x = 'from the namespace'"), block("FINAL(x)"), max_iterations=1)
    assert (result.answer, result.stop_reason) == ("from the namespace", "max_iterations")


async def test_output_is_cut_for_the_supervisor_and_whole_in_the_log(tmp_path: Path) -> None:
    result, supervisor = await answer(
        block("print('a' * 5000 + 'b' * 5000)"), block("FINAL(1)"), log_dir=tmp_path, output_limit=100
    )
    shown = supervisor.calls[1][-1]["content"]
    assert "a" * 50 + "\n[... 9,900 characters left out ...]\n" + "b" * 50 in shown
    assert read_events(tmp_path, "repl")[1]["stdout"] == "a" * 5000 + "b" * 5000 + "\n"
    assert result.answer == "1"


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("x = 5\nraise ValueError('after x')", "ValueError: after x"),
        ("x = 5\nimport sys; sys.exit(1)", "SystemExit"),
        ("x = 5\nwhile True: y = 1", "took too long"),
        ("x = 5\nprint('x' * 50_000_000)", "printed too much"),
    ],
)
async def test_the_run_goes_on_with_its_variables(code: str, shown: str) -> None:
    config = SMALL_CONFIG.model_copy(update={"timeout": 0.5})
    result, supervisor = await answer(block(code), block("FINAL(x)"), sandbox=config)
    assert shown in supervisor.calls[1][-1]["content"]
    assert (result.answer, result.stop_reason) == ("5", "final")


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.kill(os.getpid(), 9)",
        "import os; os._exit(0)",
        "try:\n  sum(range(10**13))\nexcept: pass",
    ],
)
async def test_a_lost_interpreter_is_replaced_and_the_supervisor_told(code: str) -> None:
    config = SMALL_CONFIG.model_copy(update={"timeout": 0.5})
    result, supervisor = await answer(
        block("x = 1\n" + code), block("FINAL('x' in globals())"), sandbox=config
    )
    shown = supervisor.calls[1][-1]["content"]
    assert "ended the interpreter" in shown
    assert "all variables are gone" in shown
    assert (result.answer, result.stop_reason) == ("False", "final")


async def test_an_attack_on_the_protocol_ends_the_run_with_a_best_answer() -> None:
    attack = (
        "import os, socket, struct\nfor fd in range(3, 20):\n"
        "  try: os.write(fd, struct.pack('<I', 2**31))\n  except OSError: pass\nimport time; time.sleep(5)"
    )
    result, _ = await answer(block(attack), "gave up")
    assert (result.answer, result.stop_reason) == ("gave up", "sandbox_lost")


async def test_machinery_killed_from_outside_ends_the_run_with_a_best_answer() -> None:
    before = guest_processes_named("supdist-shim")
    killed = asyncio.Event()

    async def kill_when_asked(messages: Sequence[Message]) -> Completion:
        (target,) = guest_processes_named("supdist-shim") - before
        os.kill(target, signal.SIGKILL)
        killed.set()
        await asyncio.Event().wait()
        raise AssertionError

    class Killer(ModelHandler):
        chat = staticmethod(kill_when_asked)  # pyright: ignore[reportAssignmentType]  # wrong on purpose

    result, _ = await answer(block("worker('x')"), "what I saw", worker=Killer())
    assert killed.is_set()
    assert (result.answer, result.stop_reason) == ("what I saw", "sandbox_lost")


@pytest.mark.timing
async def test_time_runs_out_into_a_best_answer() -> None:
    limits = RunLimits(max_seconds=1.0)
    result, supervisor = await answer(
        block("print('saw this')"),
        block("import time; time.sleep(60)"),
        "best",
        limits=limits,
        sandbox=SMALL_CONFIG.model_copy(update={"timeout": 60.0}),
    )
    assert (result.answer, result.stop_reason) == ("best", "timeout")
    assert result.elapsed < 5
    roles = [message["role"] for message in supervisor.calls[-1]]
    assert all(a != b for a, b in itertools.pairwise(roles)), "turns alternate even after a cut"


async def test_an_answer_given_before_the_time_was_up_is_the_answer(tmp_path: Path) -> None:
    code = "print('expensive'); FINAL('THE ANSWER')\nwhile True: x = 1"
    result, _ = await answer(block(code), limits=RunLimits(max_seconds=1.0), log_dir=tmp_path)
    assert (result.answer, result.stop_reason) == ("THE ANSWER", "final")
    assert read_events(tmp_path, "repl")[1]["stdout"] == "expensive\n"


async def test_what_a_block_did_until_the_time_was_up_is_seen() -> None:
    limits = RunLimits(max_seconds=1.0)
    result, supervisor = await answer(block("print('evidence')\nwhile True: x = 1"), "best", limits=limits)
    assert (result.answer, result.stop_reason) == ("best", "timeout")
    assert "evidence" in supervisor.calls[1][-1]["content"]


async def test_a_best_answer_in_a_block_survives_a_lost_sandbox() -> None:
    attack = (
        "import os, struct\nfor fd in range(3, 20):\n  try: os.write(fd, struct.pack('<I', 2**31))\n"
        "  except OSError: pass\nimport time; time.sleep(5)"
    )
    result, _ = await answer(block(attack), block("FINAL('BEST')"))
    assert result.stop_reason == "sandbox_lost"
    assert result.answer is not None
    assert "BEST" in result.answer


async def test_a_model_that_fails_at_the_best_answer_leaves_a_result() -> None:
    result, _ = await answer(block("print(1)"), Unavailable("down"), max_iterations=1)
    assert (result.answer, result.stop_reason) == (None, "max_iterations")


async def test_a_plain_handler_that_hangs_does_not_keep_the_supervisor_from_its_answer() -> None:
    import threading

    release = threading.Event()

    class Hangs(ModelHandler):
        def chat(self, messages: Sequence[Message]) -> Completion:
            release.wait(20)
            return Completion("late")

    class Plain(ModelHandler):
        def chat(self, messages: Sequence[Message]) -> Completion:
            return Completion(
                "best" if "over" in messages[-1]["content"] else block("worker_batch(['x'] * 100)")
            )

    try:
        result = await arun(
            query="q", context="c", supervisor=Plain(), worker=Hangs(), limits=RunLimits(max_seconds=1.0)
        )
    finally:
        release.set()
    assert (result.answer, result.stop_reason) == ("best", "timeout")


async def test_a_handler_that_gives_something_else_is_named(tmp_path: Path) -> None:
    class Wrong(ModelHandler):
        def chat(self, messages: Sequence[Message]) -> Completion:
            return "text"  # pyright: ignore[reportReturnType]  # wrong on purpose

    with pytest.raises(TypeError, match=r"Wrong\.chat returned a str, not a Completion"):
        await arun(query="q", context="c", supervisor=Wrong(), worker=upper_worker())


async def test_a_supervisor_that_fails_for_good_raises_and_the_log_says_so(tmp_path: Path) -> None:
    with pytest.raises(Rejected):
        await answer(block("print(1)"), Rejected("no such model"), log_dir=tmp_path)
    assert read_events(tmp_path, "repl")[-1]["stdout"] == "1\n"
    last = read_events(tmp_path, "supervisor")[-1]
    assert (last["event"], last["error"]) == ("run_end", "Rejected: no such model")


async def test_a_failing_worker_is_an_error_in_the_block_that_tells_no_host_secrets(tmp_path: Path) -> None:
    class Broken(ModelHandler):
        model = "broken"

        def chat(self, messages: Sequence[Message]) -> Completion:
            raise RuntimeError("/host/secret")

    result, supervisor = await answer(
        block("worker('x')"), block("FINAL('went on')"), worker=Broken(), log_dir=tmp_path
    )
    shown = supervisor.calls[1][-1]["content"]
    assert "WorkerError: unavailable" in shown
    assert "secret" not in shown
    assert result.answer == "went on"
    logged = read_events(tmp_path, "worker")[-1]
    assert "RuntimeError: /host/secret" in logged["message"]
    assert f"WorkerError: {logged['error']}: {logged['told']}" in shown


async def test_a_log_that_a_kill_cut_off_is_gone_on_with_on_a_line_of_its_own(tmp_path: Path) -> None:
    for name in ("supervisor", "worker"):
        (tmp_path / f"{name}.jsonl").write_text('{"event": "run_st')
    await answer(block("FINAL(worker('x'))"), log_dir=tmp_path)
    for name in ("supervisor", "worker"):
        cut, *lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        assert cut == '{"event": "run_st'
        assert json.loads(lines[0])["event"] == "run_start"
    assert (tmp_path / "repl.jsonl").read_text().startswith("{")


@pytest.mark.parametrize("kind", ["sync", "async", "sync_batch", "async_batch"])
async def test_handlers_of_users_work_plain_or_async(kind: str) -> None:
    class Sync(ModelHandler):
        def chat(self, messages: Sequence[Message]) -> Completion:
            return Completion("one " + messages[-1]["content"])

    class Async(ModelHandler):
        async def chat(self, messages: Sequence[Message]) -> Completion:
            return Completion("one " + messages[-1]["content"])

    class SyncBatch(Sync):
        def chat_batch(self, message_batches: Sequence[Sequence[Message]]) -> list[Completion | HandlerError]:
            return [
                Unavailable("x") if m[-1]["content"] == "bad" else Completion("many " + m[-1]["content"])
                for m in message_batches
            ]

    class AsyncBatch(Async):
        async def chat_batch(
            self, message_batches: Sequence[Sequence[Message]]
        ) -> list[Completion | HandlerError]:
            return [
                Unavailable("x") if m[-1]["content"] == "bad" else Completion("many " + m[-1]["content"])
                for m in message_batches
            ]

    handler = {"sync": Sync, "async": Async, "sync_batch": SyncBatch, "async_batch": AsyncBatch}[kind]()
    code = "FINAL([worker('a')] + [str(r) for r in worker_batch(['b', 'bad'], return_errors=True)])"
    result, _ = await answer(block(code), worker=handler)
    many = "many" if "batch" in kind else "one"
    bad = '"unavailable: the worker could not be reached, or failed"' if "batch" in kind else '"one bad"'
    assert result.answer == f'["{many} a", "{many} b", {bad}]'
    assert result.worker_usage.calls == (2 if "batch" in kind else 3)


async def test_ten_runs_at_once_share_one_zygote_and_do_not_mix() -> None:
    async def one(number: int) -> str | None:
        result, _ = await answer(
            block("print(context)"), block("FINAL(worker(context))"), context=f"doc {number}"
        )
        assert len(zygotes()) == 1
        return result.answer

    assert await asyncio.gather(*(one(n) for n in range(10))) == [f"DOC {n}" for n in range(10)]


def test_run_works_in_a_plain_script_and_in_a_thread() -> None:
    import threading

    results: list[str | None] = []

    def work() -> None:
        supervisor = ScriptedHandler([block("FINAL(worker(context))")])
        results.append(run(query="q", context="c", supervisor=supervisor, worker=upper_worker()).answer)

    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == ["C", "C"]


async def test_run_works_inside_a_running_event_loop_as_in_a_notebook() -> None:
    supervisor = ScriptedHandler([block("FINAL(worker(context))")])
    assert run(query="q", context="c", supervisor=supervisor, worker=upper_worker()).answer == "C"


async def test_events_tell_the_story_in_order() -> None:
    told: list[Event] = []
    await answer(block("worker_batch(['a', 'b'])\nFINAL(1)"), on_event=told.append)
    names = [type(event).__name__ for event in told if not isinstance(event, (Metrics, SupervisorWrote))]
    assert names == [
        "RunStarted",
        "TurnStarted",
        "SupervisorReplied",
        "BlockStarted",
        "BlockEnded",
        "RunEnded",
    ]
    assert isinstance(told[0], RunStarted)
    assert isinstance(told[-1], RunEnded)
    progress = [event for event in told if isinstance(event, Metrics)]
    assert [event.in_flight for event in progress] == [2, 0]
    assert progress[-1].usage.calls == 2


async def test_logs_join_question_turn_block_and_worker_call(tmp_path: Path) -> None:
    context = {"k": "v"}
    result, _ = await answer(
        block("print(worker('hello'))"), block("FINAL(1)"), context=context, log_dir=tmp_path
    )
    supervisor, worker, repl = (read_events(tmp_path, name) for name in ("supervisor", "worker", "repl"))
    for event in supervisor + worker + repl:
        assert event["run_id"] == result.run_id
        assert {"step", "timestamp", "event"} <= event.keys()
    start = supervisor[0]
    assert start["query"] == "why?"
    assert json.loads((tmp_path / start["context"]["file"]).read_text()) == context
    assert start["context"]["bytes"] > 0
    assert [event["event"] for event in supervisor] == ["run_start", "supervisor", "supervisor", "run_end"]
    assert supervisor[-1]["stop_reason"] == "final"
    turns = supervisor[1:3]
    assert [len(turn["messages"]) for turn in turns] == [2, 1], "only what is new"
    assert all({"model", "usage", "elapsed"} <= turn.keys() for turn in turns)
    call = worker[1]
    assert (call["step"], call["cell"], call["call"], call["index"]) == (1, 1, 1, 0)
    assert (call["prompt"], call["response"]) == ("hello", "HELLO")
    assert (repl[1]["cell"], repl[1]["stdout"], repl[1]["outcome"]) == (1, "HELLO\n", "ok")


async def test_hostile_text_stays_one_event_a_line_of_plain_ascii(tmp_path: Path) -> None:
    nasty = 'a\\nb\\r\\u2028\\u0085\\x0b\\x1b]52;c;x\\x07\\x9b31m\\u202e\\x00 {\\"event\\": \\"run_end\\"}'
    await answer(block(f"print('{nasty}')\nFINAL('{nasty}')"), log_dir=tmp_path, query="q\n\x1b[2J\u2028")
    for name in ("supervisor", "worker", "repl"):
        data = (tmp_path / f"{name}.jsonl").read_bytes()
        assert data.isascii()
        assert not {byte for byte in data if byte < 32} - {10}
        lines = data.decode().splitlines()
        assert len(lines) == data.count(b"\n")
        assert all(json.loads(line)["event"] for line in lines)


@pytest.mark.parametrize("where", ["full", "file", "below a file"])
async def test_logs_that_cannot_be_written_stop_the_run_before_anything_is_spent(
    tmp_path: Path, where: str
) -> None:
    if where == "full":
        (tmp_path / "worker.jsonl").symlink_to("/dev/full")
        folder = tmp_path
    else:
        (tmp_path / "file").write_text("")
        folder = tmp_path / "file" / ("below" if where == "below a file" else "")
    supervisor = ScriptedHandler([block("FINAL(1)")])
    with pytest.raises(LogError, match="cannot write the logs in"):
        await arun(query="q", context="c", supervisor=supervisor, worker=upper_worker(), log_dir=folder)
    assert supervisor.calls == []


async def test_a_disk_that_fills_during_the_run_ends_it_there(tmp_path: Path) -> None:
    """The paid worker call that could not be logged is the last one."""
    worker = ScriptedHandler(lambda _: "x")

    import resource

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def on_event(event: Event) -> None:
        if isinstance(event, RunStarted):
            resource.setrlimit(resource.RLIMIT_FSIZE, (2500, old[1]))

    try:
        with pytest.raises(LogError):
            await arun(
                query="q",
                context="c",
                supervisor=ScriptedHandler([block("for i in range(100): worker(str(i))")]),
                worker=worker,
                log_dir=tmp_path,
                on_event=on_event,
                prompts=Prompts(system="s", first="f"),
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert 0 < len(worker.calls) < 100


@pytest.mark.parametrize(
    ("change", "words"),
    [({"query": " "}, "query is empty"), ({"max_iterations": 0}, "max_iterations"),
     ({"context": object()}, "object of type"), ({"output_limit": 0}, "output_limit"),
     ({"worker_ctx_k": 0}, "worker_ctx_k")],
)  # fmt: skip
async def test_wrong_arguments_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        await answer(block("FINAL(1)"), **change)


async def test_prompts_can_be_replaced() -> None:
    _, supervisor = await answer(
        block("FINAL(1)"), prompts=Prompts(system="Mine: $context_kind", first="$query!")
    )
    assert [message["content"] for message in supervisor.calls[0]] == ["Mine: a str", "why?!"]


async def test_a_cancelled_run_leaves_a_log_that_says_so(tmp_path: Path) -> None:
    told: list[Event] = []
    supervisor = ScriptedHandler([block("import time; time.sleep(60)")])
    task = asyncio.create_task(
        arun(
            query="q",
            context="c",
            supervisor=supervisor,
            worker=upper_worker(),
            log_dir=tmp_path,
            on_event=told.append,
        )
    )
    while not any(type(event).__name__ == "BlockStarted" for event in told):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert read_events(tmp_path, "supervisor")[-1]["stop_reason"] == "cancelled"
    assert isinstance(told[-1], RunEnded)
    assert told[-1].how == "cancelled"


async def test_keys_reach_neither_logs_nor_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-5151")
    code = (
        "import os, glob\nprint(dict(os.environ))\n"
        "for f in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):\n"
        "  try: print(open(f).read())\n  except OSError as e: print(e)"
    )
    await answer(block(code), block("FINAL(1)"), log_dir=tmp_path)
    for file in tmp_path.iterdir():
        assert b"canary" not in file.read_bytes()


async def test_without_a_worker_the_code_is_told_of_none_and_has_none(tmp_path: Path) -> None:
    code = "try:\n    worker('a')\nexcept Exception as error:\n    print(type(error).__name__, error)"
    supervisor = ScriptedHandler([block(code), block("print(budget())"), block("FINAL('alone')")])
    result = await arun(
        query="why?",
        context="the document",
        supervisor=supervisor,
        worker=None,
        sandbox=SMALL_CONFIG,
        limits=RunLimits(max_worker_calls=5),
        log_dir=tmp_path,
    )
    assert (result.answer, result.worker_usage, result.cost_usd) == ("alone", Usage(), 0)
    system, outputs = supervisor.calls[0][0]["content"], [call[-1]["content"] for call in supervisor.calls]
    assert "worker" not in system
    assert "`FINAL(answer)`" in system
    assert "NameError name 'worker' is not defined" in outputs[1]
    assert "worker calls" not in outputs[1], "there are none left to tell of"
    assert "'worker_calls': None" in outputs[2]
    start = read_events(tmp_path, "supervisor")[0]
    assert (start["supervisor_model"], start["worker_model"]) == ("scripted", None)
    assert [event["event"] for event in read_events(tmp_path, "worker")] == ["run_start"]


class Kept(ScriptedHandler):
    """Its answers can be kept."""

    def identity(self) -> dict[str, Any]:
        return {"model": self.model}


async def test_what_another_run_paid_for_is_told_apart_from_what_this_one_did(tmp_path: Path) -> None:
    async def ask() -> RunResult:
        return await arun(
            query="why?",
            context="the document",
            supervisor=Kept([block("FINAL(worker_batch(['a', 'b b']) + [worker('a')])")], model="big"),
            worker=Kept(lambda messages: messages[-1]["content"].upper(), model="small"),
            sandbox=SMALL_CONFIG,
            cache=tmp_path / "answers.sqlite",
            cache_sampled=True,
        )

    first, second = await ask(), await ask()
    assert first.worker_usage == second.worker.earlier == Usage(3, 3, 2)
    assert first.supervisor_usage == second.supervisor.earlier
    assert first.worker.earlier == second.worker_usage == second.supervisor_usage == Usage()
    assert (first.worker.cached, second.worker.cached) == (1, 3), "an answer counts as earlier once"
    assert first.answer == second.answer


async def test_a_run_that_is_begun_again_is_told_of_the_same_budget_and_pays_nothing(tmp_path: Path) -> None:
    turns = [block(f"print(worker('x{turn}'), budget())") for turn in range(3)] + [block("FINAL(budget())")]

    async def ask(cache_counts: bool) -> RunResult:
        return await arun(
            query="why?",
            context="the document",
            supervisor=Kept(turns, model="big"),
            worker=Kept(lambda messages: messages[-1]["content"].upper(), model="small"),
            sandbox=SMALL_CONFIG,
            limits=RunLimits(max_tokens=100_000, max_worker_calls=10),
            cache=tmp_path / "answers.sqlite",
            cache_sampled=True,
            cache_counts=cache_counts,
        )

    first, again = await ask(True), await ask(True)
    assert again.answer == first.answer
    assert again.supervisor_usage == again.worker_usage == Usage()
    assert (await ask(False)).supervisor_usage.calls > 0, "what is free leaves more to tell of"
