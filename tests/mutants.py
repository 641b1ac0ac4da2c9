"""Break the product in one place, and check that a test fails: ``python tests/mutants.py [NAME ...]``.

Each mutant removes the line that keeps one law, in a copy of the tree. If one survives, the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
_SECONDS = 300
_FOLDERS = ("engine", "handlers", "sandbox_image", "tasks", "tools", "tests", "scripts", ".typing", ".ci")


class Mutant(NamedTuple):
    """One change of the product. ``old`` stands once in ``file``; one of ``tests`` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


_SESSION = "tests/test_guest_session.py tests/test_guest_session_ends.py tests/test_guest_session_laws.py"

MUTANTS = (
    Mutant(
        "a frame's length is not bounded",
        "sandbox_image/protocol/framing.py",
        "if not 0 < size <= self._limit:",
        "if not 0 < size:",
        "tests/test_protocol.py",
    ),
    Mutant(
        "a late message counts for the next cell",
        "sandbox_image/guest_session/rules.py",
        "if self.cell is not None and self.cell.number == number:",
        "if self.cell is not None:",
        _SESSION,
    ),
    Mutant(
        "a cell answers twice",
        "sandbox_image/guest_session/rules.py",
        "        if cell.answered:\n",
        "        if False:\n",
        _SESSION,
    ),
    Mutant(
        "a call's number is used twice",
        "sandbox_image/guest_session/pending_calls.py",
        "if not self._last_number < call <= _LAST_NUMBER:",
        "if not 0 < call <= _LAST_NUMBER:",
        _SESSION,
    ),
    Mutant(
        "a cell's clock stands still after its calls",
        "sandbox_image/guest_session/rules.py",
        "            self.cell.resume_clock(now)\n",
        "            pass\n",
        _SESSION,
    ),
    Mutant(
        "init's messages are taken from the repl",
        "sandbox_image/guest_session/session.py",
        'if self._has_two_streams and isinstance(message, _INIT_MESSAGES) != (source == "init"):',
        "if False:",
        _SESSION,
    ),
    Mutant(
        "a dead guest's variables count as kept",
        "sandbox_image/guest_session/rules.py",
        "state_lost=bool(death),",
        "state_lost=False,",
        _SESSION,
    ),
    Mutant(
        "the guest may gain privileges",
        "engine/jail/isolated_process.py",
        "        linux.set_no_new_privs()\n",
        "",
        "tests/test_sandbox.py -k isolation",
    ),
    Mutant(
        "no filter of system calls",
        "engine/jail/isolated_process.py",
        "            seccomp.install(template.seccomp)\n",
        "            pass\n",
        "tests/test_sandbox.py -k isolation",
    ),
    Mutant(
        "the guest keeps its capabilities",
        "engine/jail/isolated_process.py",
        "        sc.drop_capabilities()\n",
        "",
        "tests/test_sandbox.py -k isolation",
    ),
    Mutant(
        "no Landlock rules",
        "engine/jail/isolated_process.py",
        '        landlock.restrict(read=("/",), write=(protocol.WORK, "/tmp", "/dev", "/proc"))\n',
        "        pass\n",
        "tests/test_doctor.py",
    ),
    Mutant(
        "a shim outlives its zygote",
        "engine/jail/shim.py",
        "        linux.kill_with_parent()\n",
        "",
        "tests/test_orphans.py",
    ),
    Mutant(
        "a guest outlives its shim",
        "engine/jail/isolated_process.py",
        "        # After the last change of ids, which would undo it.\n        linux.kill_with_parent()\n",
        "        linux.prctl(linux.PR_SET_PDEATHSIG, 0)\n",
        "tests/test_orphans.py",
    ),
    Mutant(
        "a sandbox that waits for its user outlives its shim",
        "engine/jail/isolated_process.py",
        "    # The change of ids undid it.\n    linux.kill_with_parent()\n",
        "",
        "tests/test_orphans.py",
    ),
    Mutant(
        "control groups of killed shims stay",
        "engine/jail/cgroups.py",
        "        left = [name for name in names if self.sweep(name)]\n",
        "        left = []\n",
        "tests/test_orphans.py tests/test_lifecycle.py",
    ),
    Mutant(
        "a guest may write the context that others share",
        "engine/sandbox/context.py",
        "fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL",
        "fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW",
        "tests/test_context.py tests/attacks/test_memory_fds.py",
    ),
    Mutant(
        "two calls reserve the same budget",
        "engine/broker/budget.py",
        "if 0 < amounts[limit] > free - self._reserved[limit]:",
        "if 0 < amounts[limit] > free:",
        "tests/test_budget.py",
    ),
    Mutant(
        "a failed call keeps its budget",
        "engine/broker/worker_calls.py",
        "            request.release()\n            self._fail(request, answer)\n",
        "            self._fail(request, answer)\n",
        "tests/test_broker.py tests/test_budget.py",
    ),
    Mutant(
        "models share their cached answers",
        "engine/broker/cache.py",
        "[_KEY_VERSION, identity, list(messages), sample]",
        "[_KEY_VERSION, {}, list(messages), sample]",
        "tests/test_cache.py tests/test_broker.py",
    ),
    Mutant(
        "an ended cell's requests go on",
        "engine/broker/handler_queue.py",
        "                request.call.cancel_one()\n",
        "                pass\n",
        "tests/test_dispatch.py tests/test_broker.py",
    ),
    Mutant(
        "code sees an answer before the cache has it",
        "engine/broker/worker_calls.py",
        "                await self._answers.flushed()\n",
        "                pass\n",
        "tests/test_cache_faults.py",
    ),
    Mutant(
        "the record of an example waits for the end",
        "tools/evals/folder.py",
        "        with _write_errors(self.path):\n            self._write_waiting()\n        # The table",
        "        # The table",
        "tests/test_cache_faults.py tests/test_eval_kill.py",
    ),
    Mutant(
        "a run inside a run has a budget of its own alone",
        "engine/broker/run_account.py",
        "Budget(limits, outer=None if outer is None else outer.budget)",
        "Budget(limits)",
        "tests/test_runs_inside_runs.py",
    ),
)


def main() -> int:
    """Try the mutants; return 1 if one survives."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="*", help="parts of names; all without")
    names = parser.parse_args().name
    chosen = [one for one in MUTANTS if not names or any(name in one.name for name in names)]
    caught = 0
    for mutant in chosen:
        started = time.monotonic()
        failed = _first_failure(mutant)
        caught += failed is not None
        verdict, seconds = "caught" if failed else "SURVIVED", time.monotonic() - started
        _say(f"{verdict}  {mutant.name}  ({seconds:.0f} s)  {failed or ''}")
    _say(f"{caught} of {len(chosen)} mutants were caught")
    return int(caught < len(chosen))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _first_failure(mutant: Mutant) -> str | None:
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        _copy(Path(folder))
        path = Path(folder, mutant.file)
        text = path.read_text()
        assert text.count(mutant.old) == 1, f"{mutant.name}: the line stands {text.count(mutant.old)} times"
        path.write_text(text.replace(mutant.old, mutant.new))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-n0",
            "-p",
            "no:cacheprovider",
            *mutant.tests.split(),
        ]
        environment = os.environ | {"PYTHONPATH": f"{folder}/.typing", "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            run = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"the tests had not ended after {_SECONDS} s"
    # 1 is failed tests (pytest.ExitCode); anything else is a mistake here.
    assert run.returncode in (0, 1), run.stdout[-2000:] + run.stderr[-2000:]
    return next((line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), None)


def _copy(folder: Path) -> None:
    for name in _FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, folder)


if __name__ == "__main__":
    sys.exit(main())
