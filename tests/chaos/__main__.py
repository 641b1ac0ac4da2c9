"""``python -m tests.chaos --seed N --minutes 30``: break programs at random, and see how they end.

The seed fixes the programs, the faults and the moments. It does not fix what the processors do in a moment.
So a failure may need several replays: ``--seed N --step K --times 10``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .breaking import MOST_SECONDS, Breaking
from .faults import Fault, before_start, choose, send, small_disks
from .programs import COMMAND, PROGRAMS, Step, started
from .watch import Watch, adopt_orphans

BACKENDS: dict[str, dict[str, Any]] = {
    "process": {},
    "docker": {"backend": "docker"},
    "docker-runsc": {"backend": "docker", "runtime": "runsc", "isolation": "best_effort"},
}
_GONE_SECONDS = 15.0


@dataclass(slots=True)
class Result:
    """How a step ended."""

    end: str = ""
    detail: str = ""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list[str])
    hit: set[str] = field(default_factory=set[str])

    def shown(self, fault: Fault) -> str:
        """Return the fault, and whether it came too late."""
        return f"{fault}{'' if self.is_hit(fault) else ' (missed)'}"

    def is_hit(self, fault: Fault) -> bool:
        """Return whether the fault met something."""
        return fault.kind != "signal" or str(fault) in self.hit


def plan(seed: str, number: int, folder: Path, backend: dict[str, Any]) -> Step:
    """Return the step of that number: each has its own chance, so that it can be replayed alone."""
    chance = random.Random(f"{seed}:{number}")
    program = chance.choice(PROGRAMS)
    step = Step(f"{seed}:{number}", program, [], folder, backend)
    step.faults.extend(choose(chance, program, step.helpers))
    return step


def perform(step: Step) -> Result:
    """Do one step."""
    for name in ("tmp", "home", "logs", "cache"):
        (step.folder / name).mkdir(mode=0o700)
    rate = next((fault.value for fault in step.faults if fault.kind == "endpoint"), "0.02")
    url = ""
    with contextlib.ExitStack() as stack:
        helpers = dict[str, int]()
        if "endpoint" in step.helpers:
            url, helpers["endpoint"] = stack.enter_context(
                started(step, "endpoint", "asked", step.seed, rate, "0")
            )
            step.prepare(url)
        if "broker" in step.helpers:
            _, helpers["broker"] = stack.enter_context(started(step, "broker"))
        stack.enter_context(small_disks(step.faults, step.folder))
        result = _break(step, helpers)
    if step.program == "run" and not any(fault.kind in ("disk", "limit") for fault in step.faults):
        result.problems += _again(step, url)
    return result


def _break(step: Step, helpers: dict[str, int]) -> Result:
    watch, result = Watch(step.folder), Result()
    began = time.monotonic()
    with (step.folder / "out").open("w+") as out, (step.folder / "err").open("w+") as err:
        program = subprocess.Popen(
            step.command(),
            cwd=step.folder,
            env=step.environ,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            preexec_fn=before_start(step.faults),
        )
        breaking = Breaking(step, program, helpers, watch)
        status = breaking.until_end()
        result.seconds = time.monotonic() - began
        out.seek(0)
        err.seek(0)
        output, errors = out.read(), err.read()
    result.hit, result.problems = breaking.hit, breaking.problems
    if status is None:
        result.end = "hang"
        result.problems.append(f"no end within {MOST_SECONDS:.0f} s")
    else:
        result.end = f"exit {status}" if status >= 0 else f"signal {-status}"
        result.detail = output.splitlines()[-1] if step.program == "engine" and output else ""
        result.problems += step.problems(status, output, errors)
    was_killed = step.was("KILL") or status is None
    for pid in helpers.values():
        send(pid, "KILL")
    keeps_groups = was_killed or step.was("KILL", "zygote")
    left = watch.left(_GONE_SECONDS, files=not was_killed, groups=not keeps_groups)
    result.problems += [f"left: {what}" for what in left]
    watch.kill_what_is_left()
    if keeps_groups:
        result.problems += _next(step, watch)
    return result


def _run(step: Step, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        cwd=step.folder,
        env=step.environ,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=MOST_SECONDS,
    )


def _next(step: Step, watch: Watch) -> list[str]:
    """After a kill of an engine or a zygote: the next engine works, and removes what is left."""
    done = _run(step, [*COMMAND, "exec", "print(6 * 7)"])
    has_disk = any(fault.kind == "disk" and fault.target == "tmp" for fault in step.faults)
    problems = [] if done.stdout == "42\n" or has_disk else [f"the next engine: {done.stderr.strip()[-300:]}"]
    return problems + [f"left by a killed engine: {what}" for what in watch.left(_GONE_SECONDS)]


def _again(step: Step, url: str) -> list[str]:
    """Run again without faults: it answers, and pays for no answer that the log shows."""
    acknowledged = step.acknowledged()
    # The same address: an answer is cached for its endpoint.
    port = url.rpartition(":")[2].partition("/")[0]
    with started(step, "endpoint", "again", step.seed, "0", port):
        done = _run(step, step.command())
    asked = step.folder / "again"
    paid = {json.loads(line) for line in asked.read_text().splitlines()} if asked.exists() else set[str]()
    problems = [f"paid again: {prompt}" for prompt in sorted(paid & acknowledged)]
    if done.returncode != 0:
        problems.append(f"run again: exit {done.returncode} {done.stderr.strip()[-300:]}")
    return problems


def main() -> int:
    """Run the steps; print each, and a table at the end. Exit code 1 if something was wrong."""
    options = _options()
    adopt_orphans()
    table, wrong, number = Counter[tuple[str, str]](), 0, options.step or 0
    end = time.monotonic() + options.minutes * 60
    times = 0
    while (times < options.times) if options.step is not None else (time.monotonic() < end):
        folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        step = plan(options.seed, number, folder, BACKENDS[options.backend])
        result = perform(step)
        faults = ", ".join(map(result.shown, step.faults))
        print(
            f"{step.seed} {step.program}: {faults} -> {result.end}, {result.seconds:.1f} s {result.detail}",
            flush=True,
        )
        for problem in result.problems:
            print(f"  WRONG {problem}", flush=True)
        if result.problems:
            wrong += 1
            print(f"  its files: {folder}; again: --seed {options.seed} --step {number}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        table.update((fault.name, result.end) for fault in step.faults if result.is_hit(fault))
        times += 1
        number += options.step is None
    _print_table(table)
    print(f"seed {options.seed}: {times} steps, {wrong} wrong")
    return 1 if wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**6)))
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--backend", choices=sorted(BACKENDS), default="process")
    parser.add_argument("--step", type=int, help="replay this step alone")
    parser.add_argument("--times", type=int, default=1, help="with --step: how often")
    return parser.parse_args()


def _print_table(table: Counter[tuple[str, str]]) -> None:
    ends = sorted({end for _, end in table})
    print(f"{'fault':24}" + "".join(f"{end:>10}" for end in ends))
    for name in sorted({name for name, _ in table}):
        print(f"{name:24}" + "".join(f"{table[name, end] or '':>10}" for end in ends))


if __name__ == "__main__":
    sys.exit(main())
