"""The programs that faults happen to, and what must hold when they have ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .faults import ENDINGS, Fault

HERE = Path(__file__).resolve().parent
COMMAND = (sys.executable, "-m", "supdist.engine")
PROGRAMS = ("engine", "run", "run", "exec", "eval", "broker")
# On a busy machine. A kill is noticed at once; a stopped process by the deadline of a cell, or of a start.
_OPERATION_SECONDS = 25.0
_STOPPED_SECONDS = 60.0
_MOST_LINES = 30
_CONFIG: dict[str, Any] = {
    "timeout": 3.0,
    "grace": 0.5,
    "wall": 20.0,
    "memory": "256MiB",
    "pids": 32,
    "scratch": "64MiB",
}
_BLOCKS = (
    "answers = worker_batch([f'batch {i}' for i in range(12)])\nprint(answers)",
    "answers += [worker(f'single {i}') for i in range(6)]\nprint(len(answers))",
    "import time; time.sleep(0.5)\nFINAL(str(len(answers)))",
)
_CELL = "import time; time.sleep(1); print(6 * 7)"
_UNTYPED = ("Traceback (most recent", "Exception ignored", "was never retrieved", "was never awaited")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the chaos: a program, its faults and its folder."""

    seed: str
    program: str
    faults: list[Fault]
    folder: Path
    backend: dict[str, Any]

    @property
    def helpers(self) -> tuple[str, ...]:
        """The programs beside it."""
        return {"run": ("endpoint",), "broker": ("endpoint", "broker")}.get(self.program, ())

    @property
    def environ(self) -> dict[str, str]:
        """Its own folders, and no keys of the user."""
        keep = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "DOCKER_HOST")}
        own = {"TMPDIR": "tmp", "HOME": "home"}
        # A full disk is none of the interpreter's: its caches would fill it.
        quiet = {"PYTHONDONTWRITEBYTECODE": "1"}
        return {**keep, **quiet, **{name: str(self.folder / value) for name, value in own.items()}}

    def was(self, value: str, target: str = "engine") -> bool:
        """Return whether a signal was for that target."""
        faults = [fault for fault in self.faults if fault.kind == "signal"]
        return (target, value) in [(fault.target.removeprefix("opening "), fault.value) for fault in faults]

    @property
    def lasts(self) -> bool:
        """Whether a fault is there for all of the program's life."""
        return any(fault.kind in ("limit", "disk", "endpoint") for fault in self.faults)

    def command(self) -> list[str]:
        """Return the command line of the program."""
        config = {**_CONFIG, **self.backend}
        match self.program:
            case "engine":
                is_stopped = any(fault.value == "STOP" for fault in self.faults)
                options = {
                    "seed": self.seed,
                    "sandboxes": 3,
                    # Only a death that is noticed ends a cell within this time.
                    "config": config if is_stopped else {**config, "wall": 2 * _OPERATION_SECONDS},
                    "most_seconds": _STOPPED_SECONDS if is_stopped else _OPERATION_SECONDS,
                }
                return [sys.executable, str(HERE / "engine.py"), json.dumps(options)]
            case "run":
                return [*COMMAND, "run", "task.json"]
            case "broker":
                return [*COMMAND, "run", "task.json", "--broker", f"ipc://{self.folder}/home/broker"]
            case "exec":
                words = [f"--{name}={value}" for name, value in self.backend.items() if name != "isolation"]
                return [
                    *COMMAND,
                    "exec",
                    "--timeout",
                    "3",
                    *words,
                    "import time; time.sleep(1); print(6 * 7)",
                ]
            case _:
                task = "--task needle -T length=20k -n 6 --strategy builtin"
                words = (
                    ["--resume", "logs/eval"]
                    if (self.folder / "logs/eval/config.json").exists()
                    else [*task.split(), "--out", "logs/eval"]
                )
                return [*COMMAND, "eval", *words]

    def prepare(self, endpoint: str) -> None:
        """Write the files that the program reads."""
        worker = {
            "handler": "openai",
            "model": "small",
            "base_url": endpoint,
            "temperature": 0,
            "max_retries": 2,
            "timeout": 5,
        }
        task = {
            "query": "q",
            "context": "c",
            "supervisor": {"handler": "scripted", "replies": [f"```repl\n{code}\n```" for code in _BLOCKS]},
            "worker": worker,
            "limits": {"max_seconds": 40},
            "sandbox": {**_CONFIG, **self.backend},
            "log_dir": "logs",
            "cache": "cache/answers.sqlite",
        }
        (self.folder / "task.json").write_text(json.dumps(task))
        (self.folder / "models.json").write_text(json.dumps({"worker": worker}))

    def problems(self, status: int, output: str, errors: str) -> Iterator[str]:
        """Yield what is wrong with the end of the program."""
        lines = errors.strip().splitlines()
        yield from (f"untyped: {lines[-1]}" for word in _UNTYPED if word in errors)
        if len(lines) > _MOST_LINES:
            yield f"{len(lines)} lines of messages"
        if status < 0 and not self.was(signal.Signals(-status).name.removeprefix("SIG")):
            yield f"ended by signal {-status}"
        if status >= 0 and status not in self._documented:
            yield f"exit code {status} is not documented: {lines[-1:]}"
        if status in (4, 5, 6) and "supdist-engine: " not in errors and self.program != "engine":
            yield f"exit code {status} without a message"
        if self.program == "engine" and status == 0:
            yield from self._engine_problems(output)

    @property
    def _documented(self) -> set[int]:
        if self.program == "engine":
            # Its ends are those of the API: all else is untyped, and a traceback.
            return {0}
        by_signal = {128 + ENDINGS[name] for name in ("INT", "TERM", "HUP") if self.was(name)}
        own = {"exec": {1, 124, 137}, "eval": {1}, "run": {3}, "broker": {3}}[self.program]
        return {0, 4, 5, 6} | own | by_signal

    def _engine_problems(self, output: str) -> Iterator[str]:
        found = json.loads(output.splitlines()[-1])
        yield from (f"took too long: {end}" for end in found["ends"] if end.startswith("LATE"))
        if found["next"] != "42" and not self.lasts:
            yield f"the next sandbox: {found['next']}"

    def acknowledged(self) -> set[str]:
        """Return the prompts whose answers the log shows."""
        path = self.folder / "logs/worker.jsonl"
        if not path.exists():
            return set()
        found = set[str]()
        for line in path.read_text().splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # the last one, of a program that was killed
            if event["event"] == "worker" and event.get("response") is not None:
                found.add(event["prompt"])
        return found


@contextmanager
def started(step: Step, name: str, *words: str) -> Generator[tuple[str, int]]:
    """Start a helper; yield its first line and its pid."""
    command = {
        "endpoint": [sys.executable, str(HERE / "endpoint.py"), *words],
        "broker": [*COMMAND, "broker", "models.json", "--bind", f"ipc://{step.folder}/home/broker"],
    }[name]
    errors = (step.folder / f"{name}.err").open("w")
    with (
        errors,
        subprocess.Popen(
            command, cwd=step.folder, env=step.environ, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.kill()
            process.wait()
