"""Commands end with one message and the documented exit code, whatever ends or surrounds them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
from process_support import COMMAND, clean_environment, descendants, restore_sigint, terminal_output

ANSWER = "the answer"
NO_SPACE, IS_CLOSED = "No space left on device", "it is closed"
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a task file, a models file and an empty TMPDIR."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "home").mkdir()
    write_task(tmp_path, "task.json", f"FINAL({ANSWER!r})")
    write_task(tmp_path, "slow.json", "import time; time.sleep(60)")
    (tmp_path / "models.json").write_text('{"worker": {"handler": "builtin"}}')
    return tmp_path


def write_task(folder: Path, name: str, code: str) -> None:
    supervisor = {"handler": "scripted", "replies": [f"```repl\n{code}\n```"]}
    task = {"query": "q", "context": "c", "supervisor": supervisor, "worker": {"handler": "builtin"}}
    (folder / name).write_text(json.dumps({**task, "log_dir": "logs"}))


def shell(folder: Path, line: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which $S is the command and $D the folder."""
    own = {"S": " ".join(COMMAND), "D": str(folder), "TMPDIR": f"{folder}/tmp", "HOME": f"{folder}/home"}
    return subprocess.run(
        ["bash", "-c", line],
        check=False,
        cwd=folder,
        env=clean_environment(**{**own, **environ}),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=100,
    )


def is_clean(done: subprocess.CompletedProcess[str]) -> bool:
    return not any(word in done.stdout + done.stderr for word in ("Traceback", "Exception ignored"))


EVAL = "--task needle -T length=2k -n 1 --strategy builtin"
COMMANDS = {
    "run": "run $D/task.json",
    "run-json": "run $D/task.json --json",
    "exec": "exec 'print(6 * 7)'",
    "eval": f"eval {EVAL} --out $D/eval",
    "doctor": "doctor",
    "schema": "schema",
    "version": "--version",
    "help": "--help",
    "keygen": "broker keygen $D/keys --client c",
    "trust": "trust list",
}
SHOWN = {
    "run": ANSWER,
    "run-json": ANSWER,
    "exec": "42",
    "eval": "100% right",
    "doctor": "default level holds",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("redirection", "reason"), [("> /dev/full", NO_SPACE), (">&-", IS_CLOSED)])
def test_what_stdout_cannot_take_goes_to_stderr_and_the_exit_code_says_so(
    folder: Path, command: str, redirection: str, reason: str
) -> None:
    done = shell(folder, f"$S {COMMANDS[command]} {redirection}")
    assert (done.returncode, is_clean(done)) == (6, True), done.stdout + done.stderr
    assert f"cannot write to stdout: {reason}" in done.stderr.splitlines()[-1]
    assert SHOWN.get(command, "") in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("redirection", ["2> /dev/full", "2>&-", "<&-"])
def test_without_stderr_or_stdin_a_command_does_its_work(
    folder: Path, command: str, redirection: str
) -> None:
    done = shell(folder, f"$S {COMMANDS[command]} {redirection}")
    assert (done.returncode, is_clean(done)) == (0, True), done.stdout + done.stderr
    assert SHOWN.get(command, "") in done.stdout


@pytest.mark.parametrize("redirection", ["> /dev/full 2> /dev/full", ">&- 2>&-"])
def test_without_any_stream_the_exit_code_tells(folder: Path, redirection: str) -> None:
    assert shell(folder, f"$S run task.json {redirection}").returncode == 6


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_has_gone_ends_a_command_as_sigpipe_would(folder: Path, command: str) -> None:
    """Quietly: the reader has what it wanted."""
    done = shell(folder, f"$S {COMMANDS[command]} | true; exit ${{PIPESTATUS[0]}}")
    # A short text may be written before the reader is gone.
    assert done.returncode in (0, 141)
    assert is_clean(done)


def test_a_closed_stdout_is_not_the_next_file_that_is_opened(folder: Path) -> None:
    shell(folder, "$S run task.json >&-")
    logs = [path for path in (folder / "logs").iterdir() if path.suffix == ".jsonl"]
    assert logs
    for path in logs:
        for line in path.read_text().splitlines():
            json.loads(line)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "run-json", "exec", "eval", "schema", "trust"])
@pytest.mark.parametrize(
    "place", ["mkdir $D/gone; cd $D/gone; rmdir $D/gone;", "unset HOME;", "export HOME=/proc/none;"]
)
def test_neither_a_removed_folder_nor_a_missing_home_is_a_hindrance(
    folder: Path, command: str, place: str
) -> None:
    done = shell(folder, f"{place} $S {COMMANDS[command]}", PYTHONSAFEPATH="1")
    assert (done.returncode, is_clean(done)) == (0, True), done.stderr
    assert SHOWN.get(command, "") in done.stdout


@dataclass(frozen=True)
class Ending:
    """A command that was started and waits."""

    process: subprocess.Popen[bytes]
    below: set[int]

    def is_over(self) -> bool:
        return not any(os.path.exists(f"/proc/{pid}") for pid in self.below)


@pytest.fixture(params=["run", "exec", "eval"])
def busy(request: pytest.FixtureRequest, folder: Path) -> Generator[Ending]:
    """A command whose sandbox runs code, with lines of progress in a file."""
    words = {
        "run": ["run", "slow.json"],
        "exec": ["exec", "import time; time.sleep(60)"],
        "eval": ["eval", "--task", "needle", "-T", "length=400k", "-n", "40", "--strategy", "builtin"],
    }[request.param]
    environ = clean_environment(TMPDIR=f"{folder}/tmp", HOME=f"{folder}/home")
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [*COMMAND, *words], cwd=folder, env=environ, stderr=stderr, preexec_fn=restore_signals
        )
    try:
        deadline = time.monotonic() + 60
        while not (below := guests(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert below
        yield Ending(process, descendants(process.pid))
    finally:
        process.kill()
        process.wait()


def restore_signals() -> None:
    restore_sigint()
    for number, _ in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def guests(pid: int) -> set[int]:
    found = set[int]()
    for child in descendants(pid):
        try:
            name = Path(f"/proc/{child}/comm").read_text()
        except OSError:
            continue
        found |= {child} if name == "supdist-init\n" else set()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), SIGNALS)
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_ends_a_command_cleanly_and_a_second_one_at_once(
    folder: Path, busy: Ending, number: signal.Signals, status: int, times: int
) -> None:
    """The second comes at any moment of the clean-up, or after it."""
    for _ in range(times):
        busy.process.send_signal(number)
        if times > 1:
            with contextlib.suppress(subprocess.TimeoutExpired):
                busy.process.wait(0.4)
    # At the very end the interpreter puts the default handlers back.
    assert busy.process.wait(15) in (status, -number if times > 1 else status)
    deadline = time.monotonic() + 5
    while not busy.is_over() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert busy.is_over()
    assert list((folder / "tmp").iterdir()) == []
    said = (folder / "stderr").read_text()
    assert "Traceback" not in said
    assert ("interrupted" if number == signal.SIGINT else f"ended by {number.name}") in said


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_on_a_terminal_a_signal_gives_the_cursor_back_and_the_log_its_end(
    folder: Path, number: signal.Signals, status: int
) -> None:
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "run", "slow.json"],
        cwd=folder,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        preexec_fn=restore_signals,
    ) as process:
        os.close(terminal)
        shown, is_sent = b"", False
        for piece in terminal_output(controller):
            shown += piece
            if b"running block 1" in shown and not is_sent:
                process.send_signal(number)
                is_sent = True
    os.close(controller)
    assert process.returncode == status
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    last = json.loads((folder / "logs/supervisor.jsonl").read_text().splitlines()[-1])
    assert last["stop_reason"] == "cancelled"


@pytest.mark.slow
def test_ctrl_c_while_a_command_starts_is_one_line(folder: Path) -> None:
    """From the first line of the engine on; before it, the interpreter itself starts."""
    environ = clean_environment(TMPDIR=f"{folder}/tmp")
    # Reports the first line, and then goes on as ``python -m supdist.engine`` does.
    program = "import os, sys; from supdist.engine.cli.signals import end_at_signals; end_at_signals(); "
    program += "os.write(2, b'!'); sys.argv[1:] = ['exec', 'import time; time.sleep(60)']; "
    program += "from supdist.tools.cli import main; main()"
    for moment in range(40):
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=folder,
            env=environ,
            stderr=subprocess.PIPE,
            preexec_fn=restore_signals,
        )
        assert process.stderr is not None
        with process.stderr:
            assert process.stderr.read(1) == b"!"
            # No synchronisation: every moment of the start is to be met.
            time.sleep(moment * 0.03)
            process.send_signal(signal.SIGINT)
            assert process.stderr.read() == b"supdist-engine: interrupted\n"
        assert process.wait(15) == 130
        assert list((folder / "tmp").iterdir()) == []
