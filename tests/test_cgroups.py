"""Control groups: the real ones of this machine, and the choice among trees laid out in a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from supdist.engine import SandboxConfig
from supdist.sandbox_image.jail.cgroups import CgroupBase, CgroupV2

LIMITS = SandboxConfig.model_validate({"memory": "64MiB", "pids": 8, "cpus": 0.5}).limits()


def unified(root: Path, path: str) -> Path:
    """A version 2 tree with one group in it, as far as files go."""
    (root / "cgroup.controllers").write_text("cpu memory pids\n")
    group = root / path
    group.mkdir(parents=True)
    (root / "membership").write_text(f"0::/{path}\n")
    return group


def with_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is born with the files that the kernel would put there."""
    made = Path.mkdir

    def mkdir(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        made(self, mode, parents, exist_ok)
        if self.name.startswith("supdist-"):
            for name in (
                "memory.max",
                "memory.swap.max",
                "memory.oom.group",
                "pids.max",
                "cpu.max",
                "cgroup.procs",
            ):
                (self / name).write_text("")
            (self / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 2\noom_kill 3\n")
            (self / "pids.events").write_text("max 4\n")
            (self / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")

    monkeypatch.setattr(Path, "mkdir", mkdir)


def test_version_2_is_used_beside_the_engines_own_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = unified(tmp_path, "user.slice/app.slice/run.scope")
    with_files(monkeypatch)
    monkeypatch.setattr(Path, "rmdir", Path.exists)
    base = CgroupBase.find(tmp_path, tmp_path / "membership")
    assert base is not None
    assert base.version == 2
    made = base.create("1-2")
    assert isinstance(made, CgroupV2)
    folder = group.parent / "supdist-1-2"
    made.limit(LIMITS)
    made.add(77)
    assert (folder / "memory.max").read_text() == str(64 << 20)
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "memory.oom.group").read_text() == "1"
    assert (folder / "pids.max").read_text() == "9"
    assert (folder / "cpu.max").read_text() == "50000 100000"
    assert (folder / "cgroup.procs").read_text() == "77"
    assert (made.oom_kills(), made.refused_forks(), made.cpu_seconds(), made.peak_memory()) == (3, 4, 1.5, 0)


def test_a_tree_without_controllers_is_no_place(tmp_path: Path) -> None:
    unified(tmp_path, "session")
    assert CgroupBase.find(tmp_path, tmp_path / "membership") is None


def test_no_tree_at_all_is_none(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/\n")
    assert CgroupBase.find(tmp_path, tmp_path / "membership") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has no control groups here")
def test_a_real_group_is_made_limited_and_removed() -> None:
    base = CgroupBase.find()
    if base is None:
        pytest.skip("this machine gives out no control groups")
    group = base.create(f"{os.getpid()}-test")
    assert group is not None
    try:
        group.limit(LIMITS)
        assert group.oom_kills() == 0
        assert base.sweep(f"{os.getpid()}-other") is False
    finally:
        group.remove()
    assert not list(Path("/sys/fs/cgroup").glob(f"*/supdist-{os.getpid()}-test"))
