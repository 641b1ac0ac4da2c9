"""The guest on stdin and stdout, as in a container; here not isolated, so only with our own code."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from guest_support import Guest, guest

from supdist.sandbox_image import protocol
from supdist.sandbox_image.protocol import VERSION, Done, Load, ReplExit

COMMAND = [sys.executable, "-I", "-m", "supdist.sandbox_image.guest"]
CONTEXT = Load("text", "frame", "Grüße".encode())


def ended(guest_end: Guest) -> ReplExit:
    _, end = guest_end.run("import os; os.kill(os.getpid(), 9)")
    assert isinstance(end, ReplExit)
    return end


def test_it_speaks_frames_and_keeps_variables() -> None:
    with guest(COMMAND) as guest_end:
        assert guest_end.start(CONTEXT).version == VERSION
        assert guest_end.run("x = context; print(query)") == ("the question\n", Done(1, None))
        assert guest_end.run("print(x)") == ("Grüße\n", Done(2, None))


def test_what_code_and_its_children_print_never_mixes_with_frames() -> None:
    with guest(COMMAND) as guest_end:
        guest_end.start(CONTEXT)
        text, end = guest_end.run(
            "import contextlib, os, subprocess\n"
            "os.write(1, b'raw ')\n"
            "subprocess.run(['sh', '-c', 'printf child; printf junk > /dev/stderr'])\n"
            "for fd in (0, 1):\n"
            "    with contextlib.suppress(OSError):\n"
            "        os.write(os.open(f'/proc/{os.getppid()}/fd/{fd}', os.O_WRONLY), b'junk')\n"
        )
        assert text == "raw child"
        assert isinstance(end, Done)


def test_it_outlives_its_repl_until_the_host_hangs_up() -> None:
    with guest(COMMAND) as guest_end:
        guest_end.start(CONTEXT)
        end = ended(guest_end)
        assert (end.status, end.hung_up) == (signal.SIGKILL, False)
        assert guest_end.process.poll() is None
        guest_end.close_input()
        assert guest_end.receive() is None
        assert guest_end.process.wait(30) == 0


def test_it_keeps_no_more_for_its_repl_than_a_bound(tmp_path: Path) -> None:
    """Without a memory limit, as in gVisor without control groups, nothing else would end that."""
    enough = tmp_path / "enough"
    reply = protocol.frame(protocol.encode(protocol.ToolReply(1, b"x" * (1 << 20))))
    with guest(COMMAND) as guest_end:
        guest_end.start(CONTEXT)
        guest_end.begin(
            f"import os, time\nwhile not os.path.exists({str(enough)!r}): time.sleep(0.01)\nprint('read on')"
        )
        try:
            sent = guest_end.flood(reply * 200)
            assert sent < 40 << 20, f"{sent >> 20} MiB"
        finally:
            enough.touch()  # else, without walls, the cell would outlive the test
        guest_end.flood(reply[sent % len(reply) :], whole=True)
        assert guest_end.end() == ("read on\n", Done(1, None))


def test_a_host_that_listens_to_nobody_who_does_not_read_is_read() -> None:
    """As a shim does with 8 MiB waiting. Threads wait for large answers while the cell prints."""
    code = (
        "import time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(6) as pool:\n"
        "    asked = [pool.submit(worker_batch, ['p'] * 256) for _ in range(6)]\n"
        "    time.sleep(0.3)\n"  # they ask
        "    print('asked')\n"
        "    sum(range(60_000_000))\n"  # holds the interpreter's lock
        "    print('x' * 1_000_000)\n"
        "print(sum(map(len, asked[0].result())))\n"
    )
    with guest(COMMAND) as guest_end:
        guest_end.start(CONTEXT)
        text, end = guest_end.serve(
            code, lambda call: ["y" * 36_000] * len(call.prompts), after=b"asked", quiet_bytes=8 << 20
        )
        assert end == Done(1, None)
        assert text == f"asked\n{'x' * 1_000_000}\n{256 * 36_000}\n"


@pytest.mark.timing
@pytest.mark.slow
def test_it_does_not_wait_for_ever_for_the_host_to_hang_up() -> None:
    with guest(COMMAND) as guest_end:
        guest_end.start(CONTEXT)
        ended(guest_end)
        start = time.monotonic()
        assert guest_end.receive() is None
        assert time.monotonic() - start < 10


def test_it_ends_with_its_host() -> None:
    with guest(COMMAND) as guest_end:
        guest_end.start(CONTEXT)
        guest_end.close_input()
        assert guest_end.receive() is None
        assert guest_end.process.wait(30) == 1


def test_the_repl_is_what_the_kernel_takes_first_and_init_is_closed_to_it() -> None:
    with guest(COMMAND) as guest_end:
        guest_end.start(CONTEXT)
        text, _ = guest_end.run(
            "import os\n"
            "print(open('/proc/self/oom_score_adj').read().strip())\n"
            "print(open(f'/proc/{os.getppid()}/oom_score_adj').read().strip() != '1000')\n"
            "print(os.stat(f'/proc/{os.getppid()}/fd').st_uid)"
        )
        assert text == "1000\nTrue\n0\n"
