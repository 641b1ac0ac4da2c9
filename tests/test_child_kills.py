"""Child processes that die, kill or multiply: the outcome says what happened, and what is left."""

from __future__ import annotations

import pytest
from support import Open

from supdist.engine import Outcome, SandboxLost

pytestmark = pytest.mark.anyio

KEPT = {
    "a child without memory": (
        "import subprocess as s; print(s.run(['python3', '-c', 'bytes(400 << 20)'], stderr=-3).returncode)",
        "1\n",
    ),
    "a child that is killed": (
        "import subprocess; print(subprocess.run('kill -9 $$', shell=True).returncode)",
        "-9\n",
    ),
    "more children than are allowed": (
        """
import subprocess
bomb = 'for i in $(seq 200); do sleep 5 & done 2>/dev/null; exit 7'
print(subprocess.run(['bash', '-c', bomb], stderr=-3).returncode > 0)
""",
        "True\n",
    ),
}


@pytest.mark.parametrize("name", KEPT)
async def test_what_ends_a_child_alone_keeps_variables_and_files(small: Open, name: str) -> None:
    code, printed = KEPT[name]
    async with small(memory="128MiB", timeout=20.0) as sandbox:
        await sandbox.put("keep.txt", b"x")
        result = await sandbox.execute(f"kept = 1\n{code}")
        assert (result.outcome, result.stdout, result.state_lost) == (Outcome.OK, printed, False), result
        assert await sandbox.get("keep.txt") == b"x"
        assert (await sandbox.execute("print(kept)")).stdout == "1\n"


@pytest.mark.parametrize(
    ("signal", "outcome", "said"),
    [("KILL", Outcome.KILLED, "the interpreter was killed (SIGKILL)"), ("TERM", Outcome.CRASHED, "SIGTERM")],
)
async def test_a_child_that_kills_the_interpreter_ends_the_sandbox_and_it_says_so(
    small: Open, signal: str, outcome: Outcome, said: str
) -> None:
    async with small() as sandbox:
        await sandbox.put("lost.txt", b"x")
        code = f"import subprocess, time; subprocess.run(['sh', '-c', 'kill -{signal} $PPID']); time.sleep(9)"
        result = await sandbox.execute(code)
        assert (result.outcome, result.state_lost) == (outcome, True), result
        assert said in result.detail
        for use in (sandbox.get("lost.txt"), sandbox.execute("1")):
            with pytest.raises(SandboxLost, match=r"its variables and files are gone. Call reset\(\)"):
                await use
        await sandbox.reset()
        assert (await sandbox.list()).files == ()
