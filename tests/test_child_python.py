"""`python` inside a sandbox, and interpreters and packages that links lead to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import Open

from supdist.engine.jail import rootfs

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "command",
    [
        "[sys.executable]",
        "['python']",
        "['python3']",
        "['env', '-i', sys.executable]",
        "['sh', '-c', 'python \"$@\"', '-']",
    ],
)
async def test_a_child_is_the_interpreter_of_the_cells(small: Open, command: str) -> None:
    """One that is built with a shared library finds its own, and no other version's."""
    code = (
        "import subprocess, sys\n"
        f"program = [*{command}, '-c', 'import sys; print(sys.version)']\n"
        "done = subprocess.run(program, capture_output=True, text=True)\n"
        "print(done.stdout == sys.version + '\\n', done.stderr)"
    )
    async with small() as sandbox:
        result = await sandbox.execute(code)
    assert (result.error, result.stdout) == (None, "True \n")


async def test_a_process_is_spawned(small: Open) -> None:
    code = (
        "import math, multiprocessing\n"
        "with multiprocessing.get_context('spawn').Pool(1) as pool: print(pool.map(math.sqrt, [4]))"
    )
    async with small() as sandbox:
        result = await sandbox.execute(code, timeout=30)
    assert (result.error, result.stdout) == (None, "[2.0]\n")


PROCESSES = """
import math, multiprocessing
if __name__ == "__main__":
    with multiprocessing.get_context(METHOD).Pool(1) as pool: print(pool.map(math.sqrt, [4]))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("python", ["sys.executable", "'python'", "'python3'"])
async def test_a_virtual_environment_is_made_and_starts_processes(
    small: Open, python: str, method: str
) -> None:
    """Its home is the folder of the command, so the library must be found from there."""
    code = f"""
import subprocess, sys
def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or done.stderr
print(run({python}, "-m", "venv", "--without-pip", "/work/v"))
print(run("/work/v/bin/python", "-c", "import sys, json, zlib; print(sys.prefix, sys.version == {{!r}})"
      .format(sys.version)))
open("/work/p.py", "w").write({PROCESSES.replace("METHOD", repr(method))!r})
print(run("/work/v/bin/python", "/work/p.py"))
"""
    async with small() as sandbox:
        result = await sandbox.execute(code, timeout=60)
    assert (result.error, result.stdout) == (None, "\n/work/v True\n[2.0]\n")


@pytest.mark.parametrize("command", ["pip", "pip3", "python -m pip", "uv pip", "conda", "mamba"])
async def test_installers_say_how_packages_come_in(small: Open, command: str) -> None:
    code = f"""
import subprocess
done = subprocess.run('{command} install x', shell=True, capture_output=True, text=True)
print(done.returncode, done.stdout, done.stderr)
"""
    async with small() as sandbox:
        result = await sandbox.execute(code)
    assert result.stdout.startswith("1  packages cannot be installed here: the sandbox has no network.")
    assert "--packages DIR" in result.stdout


@pytest.mark.not_over("docker", "docker-runsc", reason="the engine's own interpreter is no part of an image")
def test_an_environment_that_a_link_leads_to_opens_sandboxes(tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(Path(sys.prefix).parent)
    python = link / Path(sys.prefix).name / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "supdist.engine", "exec", "print(1)"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_installed_files_that_are_links_are_bound_one_by_one(tmp_path: Path) -> None:
    """As ``uv pip install --link-mode symlink`` installs them."""
    for folder in ("cache/deep", "installed/deep"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("a.py", "deep/b.py"):
        (tmp_path / "cache" / name).touch()
        os.symlink(tmp_path / "cache" / name, tmp_path / "installed" / name)
    found = rootfs.resolve_links(str(tmp_path / "installed"), "/hostlib/x")
    root = os.path.realpath(tmp_path / "cache")
    assert sorted(found) == [
        [f"{root}/a.py", "/hostlib/x/a.py"],
        [f"{root}/deep/b.py", "/hostlib/x/deep/b.py"],
    ]
    plain = rootfs.resolve_links(root, "/hostlib/x")
    assert plain == [[root, "/hostlib/x"]]
