"""Group 19: links in a folder of packages that lead to files of the host."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from attacks.lab import Arena, outside, timed

from supdist.engine import TaskError


@pytest.mark.parametrize("target", ["/etc/shadow", "/proc/self/environ", "secret", "archive-v0/hash/secret"])
async def test_pm2_a_link_out_of_the_packages_opens_no_sandbox(
    arena: Arena, tmp_path: Path, canary: str, target: str
) -> None:
    """The last one pretends to be uv's cache, without its mark."""
    secret = tmp_path / target
    if not target.startswith("/"):
        secret.parent.mkdir(parents=True, exist_ok=True)
        secret.write_text(canary)
    (tmp_path / "packages").mkdir()
    link = tmp_path / "packages/data.py"
    link.symlink_to(secret)
    with pytest.raises(TaskError) as caught:
        async with arena.open(packages=str(tmp_path / "packages")):
            pass
    assert f"the link {link} leads to " in str(caught.value)


@pytest.mark.parametrize("name", ["data.py", "inner/data.py"])
async def test_pm2_a_link_that_is_put_there_later_leads_to_nothing_of_the_host(
    arena: Arena, tmp_path: Path, canary: str, name: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(canary)
    folder = tmp_path / "packages"
    (folder / "inner").mkdir(parents=True)
    code = """
try: print(open(PLACE).read())
except OSError as error: print(error.errno)
"""

    async def attack() -> str:
        async with arena.open(packages=str(folder)) as sandbox:
            (folder / name).symlink_to(secret)
            return (await timed(sandbox, code.replace("PLACE", repr(f"/opt/packages/{name}")))).stdout

    # With an event loop of its own, which keeps no zygote for the folder.
    assert await asyncio.to_thread(asyncio.run, attack()) == "2\n"
    assert canary in await outside(code.replace("PLACE", repr(str(folder / name))))
