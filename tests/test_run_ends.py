"""Whatever ends a run, its result, log, event, summary and exit code agree. One table of all ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import SMALL_CONFIG, block, read_events, upper_worker

from supdist.engine import RunLimits, arun
from supdist.engine.cli.exit import exit_code
from supdist.engine.cli.failures import failures
from supdist.engine.cli.summary import summary
from supdist.engine.events import BlockStarted, Event, RunEnded
from supdist.engine.result import StopReason
from supdist.handlers import (
    Completion,
    ContextTooLong,
    HandlerError,
    Message,
    ModelHandler,
    NoAccess,
    Price,
    ScriptedHandler,
    Unavailable,
    Unreachable,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("engine")]

ATTACK = (
    "import os, struct\nfor fd in range(3, 20):\n  try: os.write(fd, struct.pack('<I', 2**31))\n"
    "  except OSError: pass\nimport time; time.sleep(5)"
)
NOTHING = block("print(1)")
HIDING = block("try: worker('x')\nexcept Exception: FINAL('guess')")


class Costly(ScriptedHandler):
    """A dollar for each token of its window."""

    price = Price(1e6, 1e6)
    window = 2
    max_tokens = 1

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return 1


@dataclass(frozen=True)
class End:
    """What must be found after a run with a result."""

    stop_reason: StopReason
    answer: str | None
    exit_code: int
    summary: str


BEST = "best answer"
CUT = Completion("", finish_reason="length")

RESULTS: dict[str, tuple[list[str | Completion | HandlerError], dict[str, Any], End]] = {
    "FINAL": ([block("FINAL(worker('x'))")], {}, End("final", "X", 0, "answered in 1 turn")),
    "all turns": ([NOTHING, BEST], {"max_iterations": 1}, End("max_iterations", BEST, 3, "all turns used")),
    "all turns, no best answer": (
        [NOTHING, Unavailable("503")], {"max_iterations": 1},
        End("max_iterations", None, 3, "all turns used, no answer"),
    ),
    "all turns, code for an answer": (
        [NOTHING, NOTHING, NOTHING], {"max_iterations": 1},
        End("max_iterations", None, 3, "all turns used, no answer"),
    ),
    "worker calls": (
        [block("worker('a')\ntry: worker('b')\nexcept Exception: FINAL('half')")],
        {"limits": RunLimits(max_worker_calls=1)}, End("final", "half", 0, "answered"),
    ),
    "tokens": ([], {"limits": RunLimits(max_tokens=10)}, End("budget", None, 3, "budget used, no answer")),
    "dollars": (
        [], {"limits": RunLimits(max_cost_usd=0.5), "costly": True},
        End("budget", None, 3, "budget used, no answer"),
    ),
    "time": (
        [block("while True: pass"), BEST], {"limits": RunLimits(max_seconds=0.5)},
        End("timeout", BEST, 3, "time limit reached, best answer"),
    ),
    "time, no best answer": (
        [block("while True: pass"), Unavailable("503")], {"limits": RunLimits(max_seconds=0.5)},
        End("timeout", None, 3, "time limit reached, no answer"),
    ),
    "protocol violation": ([block(ATTACK), BEST], {}, End("sandbox_lost", BEST, 3, "sandbox lost, best")),
    "protocol violation, literal": (
        [block(ATTACK), block("FINAL('said')")], {}, End("sandbox_lost", "said", 3, "sandbox lost, best")
    ),
    "cut off, no answer": (
        [CUT, CUT], {}, End("cut_off", None, 3, "replies cut off at max_tokens, no answer in 2 turns")
    ),
    "dead worker, a guess": (
        [HIDING], {"worker": NoAccess("401")}, End("worker_failed", "guess", 5, "worker failed in 1 turn")
    ),
    "dead worker, no answer": (
        [block("worker('x')")], {"worker": Unreachable("refused")},
        End("worker_failed", None, 5, "worker failed in 1 turn"),
    ),
    "a worker that may pass": (
        [HIDING], {"worker": Unavailable("503")}, End("worker_failed", "guess", 5, "worker failed in 1 turn")
    ),
}  # fmt: skip


def worker_that(raises: HandlerError | None) -> ModelHandler:
    return upper_worker() if raises is None else ScriptedHandler(lambda _: raises)


@pytest.mark.parametrize("name", RESULTS)
async def test_all_that_tells_of_a_result_agrees(name: str, tmp_path: Path) -> None:
    replies, options, end = RESULTS[name]
    options = dict(options)
    worker = worker_that(options.pop("worker", None))
    supervisor = Costly(replies) if options.pop("costly", False) else ScriptedHandler(replies)
    told: list[Event] = []
    result = await arun(
        query="q", context="c", supervisor=supervisor, worker=worker, sandbox=SMALL_CONFIG,
        log_dir=tmp_path, on_event=told.append, **options,
    )  # fmt: skip
    assert (result.stop_reason, result.answer) == (end.stop_reason, end.answer)
    assert exit_code(result.stop_reason) == end.exit_code
    assert summary(result, {})[0].startswith(end.summary)
    logged = read_events(tmp_path, "supervisor")[-1]
    assert (logged["event"], logged["stop_reason"]) == ("run_end", end.stop_reason)
    assert (logged["answer"], logged.get("failure")) == (end.answer, result.failure)
    assert "error" not in logged
    assert isinstance(told[-1], RunEnded)
    assert (told[-1].how, told[-1].result) == ("result", result)
    # No answer, and no answer of the worker, are never without a reason.
    assert (result.failure is not None) == (end.answer is None or end.exit_code == 5)
    assert (result.failure or "") in "\n".join(failures(result))


ERRORS: dict[str, HandlerError] = {
    "no access": NoAccess("401"),
    "context too long": ContextTooLong("too long"),
    "5xx for good": Unavailable("503"),
    "no connection": Unreachable("refused"),
}


@pytest.mark.parametrize("name", ERRORS)
async def test_a_supervisor_that_fails_is_an_error_everywhere(name: str, tmp_path: Path) -> None:
    told: list[Event] = []
    with pytest.raises(type(ERRORS[name])):
        await arun(
            query="q", context="c", supervisor=ScriptedHandler([NOTHING, ERRORS[name]]), worker=None,
            sandbox=SMALL_CONFIG, log_dir=tmp_path, on_event=told.append,
        )  # fmt: skip
    *_, failed, logged = read_events(tmp_path, "supervisor")
    error = f"{type(ERRORS[name]).__name__}: {ERRORS[name]}"
    assert (logged["event"], logged["error"], logged["stop_reason"]) == ("run_end", error, None)
    assert (failed["purpose"], failed["message"]) == ("turn", error)
    assert isinstance(told[-1], RunEnded)
    assert (told[-1].how, told[-1].result) == ("failed", None)


async def test_a_cancelled_run_says_so_everywhere(tmp_path: Path) -> None:
    told: list[Event] = []
    started = asyncio.Event()

    def on_event(event: Event) -> None:
        told.append(event)
        if isinstance(event, BlockStarted):
            started.set()

    running = asyncio.create_task(
        arun(
            query="q", context="c", supervisor=ScriptedHandler([block("while True: pass")]), worker=None,
            sandbox=SMALL_CONFIG, log_dir=tmp_path, on_event=on_event,
        )
    )  # fmt: skip
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    logged = read_events(tmp_path, "supervisor")[-1]
    assert (logged["event"], logged["stop_reason"], logged["answer"]) == ("run_end", "cancelled", None)
    assert isinstance(told[-1], RunEnded)
    assert told[-1].how == "cancelled"


def test_every_reason_has_an_end_in_the_table() -> None:
    from typing import get_args

    tested = {end.stop_reason for _, _, end in RESULTS.values()}
    assert tested | {"cancelled"} == set(get_args(StopReason))


async def test_an_answer_that_is_no_json_is_told_and_reaches_no_way_out(tmp_path: Path) -> None:
    codes = [
        "FINAL({'a': float('nan')})",
        "FINAL(float('inf'))",
        "FINAL({'a': None, 'b': 10 ** 400, 'c': 1j.real})",
    ]
    supervisor = ScriptedHandler([block(code) for code in codes])
    result = await arun(
        query="q",
        context="c",
        supervisor=supervisor,
        worker=None,
        sandbox=SMALL_CONFIG,
        log_dir=tmp_path / "l",
    )
    told = [call[-1]["content"] for call in supervisor.calls[1:]]
    assert "this has nan or inf: pass None or text instead" in told[0]
    assert "not inf: pass None or text instead" in told[1]

    def refuse(name: str) -> None:
        raise ValueError(name)

    assert json.loads(result.answer or "", parse_constant=refuse) == {"a": None, "b": 10**400, "c": 0.0}
    for file in (tmp_path / "l").glob("*.jsonl"):
        for line in file.read_text().splitlines():
            json.loads(line, parse_constant=refuse)
