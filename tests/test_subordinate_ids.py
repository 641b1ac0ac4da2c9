"""An ordinary user's subordinate ids: mapped by the helpers where all is there, else not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MAP = """
import sys
from pathlib import Path
from supdist.engine.jail import subordinate_ids, syscalls
uid, gid, root, *private = sys.argv[1:]
with subordinate_ids.mapper(int(uid), int(gid), private, root=root) as map_ids:
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    map_ids()
print([[line.split() for line in Path(f"/proc/self/{name}").read_text().splitlines()]
       for name in ("uid_map", "gid_map")])
"""

# What the real ones do with the rights that their set-uid bit gives them; here only root has them.
HELPER = """#!/bin/sh
pid=$1
printf '%s %s %s\\n%s %s %s\\n' "$2" "$3" "$4" "$5" "$6" "$7" > /proc/$pid/NAME_map
"""


def host(root: Path, line: str, *, helpers: tuple[str, ...] = ("uid", "gid")) -> str:
    for folder in ("usr/bin", "etc"):
        (root / folder).mkdir(parents=True)
    for name in helpers:
        helper = root / f"usr/bin/new{name}map"
        helper.write_text(HELPER.replace("NAME", name))
        helper.chmod(0o755)
    for name in ("subuid", "subgid"):
        (root / "etc" / name).write_text(line)
    return f"{root}/"


def mapped(root: str, *private: Path) -> str:
    command = [sys.executable, "-c", MAP, str(os.getuid()), str(os.getgid()), root, *map(str, private)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def both(*extents: list[str]) -> str:
    return str([list(extents)] * 2)


def test_the_largest_range_of_the_user_is_mapped(tmp_path: Path) -> None:
    """By the helpers, from outside of the new user namespace; where they fail, nothing is."""
    uid = os.getuid()
    lines = f"nobody-else:1:70000\n{uid}:300000:2000\nbroken\n{uid}:700000:65536\n{uid}:x:99999\n"
    expected = [["0", str(uid), "1"], ["1", "700000", "65536"]]
    assert mapped(host(tmp_path, lines)) == (both(*expected) if uid == 0 else both())


@pytest.mark.parametrize("line", ["", "someone:700000:65536\n", f"{os.getuid()}:700000:100\n", "\xff:::\n"])
def test_without_a_range_of_ones_own_nothing_is_mapped(tmp_path: Path, line: str) -> None:
    assert mapped(host(tmp_path, line)) == both()


def test_without_a_helper_nothing_is_mapped(tmp_path: Path) -> None:
    assert mapped(host(tmp_path, f"{os.getuid()}:700000:65536\n", helpers=("uid",))) == both()


@pytest.mark.parametrize(("mode", "kind"), [(0o600, "file"), (0o700, "folder")])
def test_what_only_the_user_can_read_keeps_the_users_id(tmp_path: Path, mode: int, kind: str) -> None:
    """A sandbox of another uid could not read its packages."""
    private = tmp_path / "private"
    private.mkdir() if kind == "folder" else private.touch()
    private.chmod(mode)
    root = host(tmp_path / "root", f"{os.getuid()}:700000:65536\n")
    assert mapped(root, private) == both()
    assert mapped(root, tmp_path / "gone") == mapped(root)
