"""Control groups: the real ones of this machine, and the choice among trees laid out in a folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from process_support import cgroups_of

from supdist.engine import SandboxConfig
from supdist.engine.jail import cgroups
from supdist.engine.jail.cgroups import MOUNT, CgroupBase, CgroupV2

LIMITS = SandboxConfig.model_validate({"memory": "64MiB", "pids": 8, "cpus": 0.5}).resource_limits()


def unified(root: Path, path: str) -> Path:
    """A version 2 tree with one group in it, as far as files go."""
    (root / "cgroup.controllers").write_text("cpu memory pids\n")
    group = root / path
    group.mkdir(parents=True, exist_ok=True)
    (root / "membership").write_text(f"0::/{path}\n")
    return group


BORN_WITH = {
    **dict.fromkeys(("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max"), ""),
    "memory.events": "low 0\nhigh 0\nmax 9\noom 2\noom_kill 3\n",
    "pids.events": "max 4\n",
    "cpu.stat": "usage_usec 1500000\nuser_usec 1\n",
}


def like_the_kernel(monkeypatch: pytest.MonkeyPatch, root: Path, *, lacking: str = "") -> None:
    """The rules of cgroups(7) that matter here.

    A folder below one that hands memory down is born with files, a process is in one group alone, and a group
    with processes hands no memory down.
    """
    made = os.mkdir

    def mkdir(path: str | Path, mode: int = 0o777) -> None:
        made(path, mode)
        folder = Path(path)
        put(folder / "cgroup.procs", "")
        control = folder.parent / "cgroup.subtree_control"
        if control.exists() and "+memory" in control.read_text():
            for name, data in BORN_WITH.items():
                if name != lacking:
                    put(folder / name, data)

    def write(path: str, data: str) -> None:
        file = Path(path)
        if file.name == "cgroup.procs":
            leave(root, data)
        elif file.name == "cgroup.subtree_control":
            processes = file.with_name("cgroup.procs")
            if "+memory" in data and processes.exists() and processes.read_text():
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        else:
            if not file.exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            return put(file, data)
        return put(file, (file.read_text() if file.exists() else "") + f"{data}\n")

    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(os, "rmdir", os.stat)  # the kernel removes its files with a group
    monkeypatch.setattr(cgroups, "write", write)


def put(file: Path, data: str) -> None:
    file.write_text(data)


def leave(root: Path, pid: str) -> None:
    for group in root.rglob("cgroup.procs"):
        put(group, "".join(f"{each}\n" for each in group.read_text().split() if each != pid))


def delegate(monkeypatch: pytest.MonkeyPatch, group: Path) -> None:
    """Mark a group as systemd does; not every file system that tests run on takes attributes."""

    def getxattr(path: Path, attribute: str) -> bytes:
        if path == group and attribute == "user.delegate":
            return b"1"
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))

    monkeypatch.setattr(os, "getxattr", getxattr)


def test_version_2_is_used_beside_the_engines_own_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = unified(tmp_path, "user.slice/app.slice/run.scope")
    like_the_kernel(monkeypatch, tmp_path)
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
    assert (folder / "cgroup.procs").read_text() == "77\n"
    assert (made.oom_kills(), made.refused_forks(), made.cpu_seconds(), made.peak_memory()) == (3, 4, 1.5, 0)
    assert [path.parent for path in tmp_path.rglob("cgroup.subtree_control")] == [group.parent], (
        "no other is touched"
    )


@pytest.mark.parametrize("lacking", ["cpu.max", "memory.swap.max"])
def test_a_limit_that_the_kernel_may_lack_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    group = unified(tmp_path, "user.slice/app.slice/run.scope")
    like_the_kernel(monkeypatch, tmp_path, lacking=lacking)
    base = CgroupBase.find(tmp_path, tmp_path / "membership")
    assert base is not None
    base.create("1-2").limit(LIMITS)
    assert (group.parent / "supdist-1-2" / "pids.max").read_text() == "9"
    assert not (group.parent / "supdist-1-2" / lacking).exists()


def test_a_tree_that_is_read_only_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers. There even removing a missing group fails because the file system is read-only."""

    def refuse(path: str | Path, mode: int = 0) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    unified(tmp_path, "session")
    for name in ("mkdir", "rmdir"):
        monkeypatch.setattr(os, name, refuse)
    assert CgroupBase.find(tmp_path, tmp_path / "membership") is None


def test_a_group_that_is_to_be_had_but_not_now_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never a sandbox without it."""
    unified(tmp_path, "user.slice/app.slice/run.scope")
    like_the_kernel(monkeypatch, tmp_path)
    base = CgroupBase.find(tmp_path, tmp_path / "membership")
    assert base is not None
    (tmp_path / "user.slice/app.slice/cgroup.subtree_control").write_text("")
    with pytest.raises(FileNotFoundError):
        base.create("1-2")


def test_a_delegated_group_holds_the_sandboxes_once_its_processes_are_in_a_leaf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits and the end of a unit hold for its sandboxes. The next engine starts in the leaf."""
    group = unified(tmp_path, "system.slice/run.service")
    (group / "cgroup.controllers").write_text("cpu memory pids\n")
    (group / "cgroup.procs").write_text("11\n12\n")
    like_the_kernel(monkeypatch, tmp_path)
    delegate(monkeypatch, group)
    for membership in ("system.slice/run.service", "system.slice/run.service/supdist-engine"):
        (tmp_path / "membership").write_text(f"0::/{membership}\n")
        base = CgroupBase.find(tmp_path, tmp_path / "membership")
        assert base is not None
        base.create(f"{len(membership)}-2")
        assert (group / f"supdist-{len(membership)}-2").is_dir()
    assert (group / "supdist-engine" / "cgroup.procs").read_text() == "11\n12\n"
    assert [path.parent for path in tmp_path.rglob("cgroup.subtree_control")] == [group]


def test_a_containers_root_is_its_own_to_divide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unified(tmp_path, "")
    (tmp_path / "cgroup.type").write_text("domain\n")
    (tmp_path / "cgroup.procs").write_text("1\n")
    like_the_kernel(monkeypatch, tmp_path)
    base = CgroupBase.find(tmp_path, tmp_path / "membership")
    assert base is not None
    base.create("1-2")
    assert (tmp_path / "supdist-engine" / "cgroup.procs").read_text() == "1\n"


def test_a_group_with_processes_that_is_not_delegated_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is refused, pids alone would make a threaded group of it."""
    group = unified(tmp_path, "app.slice/run.scope")
    for folder in (tmp_path, group.parent, group):
        (folder / "cgroup.procs").write_text("1\n")
    like_the_kernel(monkeypatch, tmp_path)
    assert CgroupBase.find(tmp_path, tmp_path / "membership") is None
    assert list(tmp_path.rglob("cgroup.subtree_control")) == []
    assert (group / "cgroup.procs").read_text() == "1\n"


def test_a_tree_without_controllers_is_no_place(tmp_path: Path) -> None:
    unified(tmp_path, "session")
    assert CgroupBase.find(tmp_path, tmp_path / "membership") is None


def test_no_tree_at_all_is_none(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/\n")
    assert CgroupBase.find(tmp_path, tmp_path / "membership") is None


def test_a_real_group_is_made_limited_and_removed() -> None:
    base = CgroupBase.find()
    if base is None:
        pytest.skip("this machine gives out no control groups")
    group = base.create(f"{os.getpid()}-test")
    try:
        group.limit(LIMITS)
        assert group.oom_kills() == 0
        assert base.sweep(f"{os.getpid()}-other") is False
    finally:
        group.remove()
    assert not cgroups_of(os.getpid())


def test_the_search_leaves_ones_own_group_an_ordinary_one() -> None:
    def kind() -> str:
        path = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip()
        return (MOUNT / path / "cgroup.type").read_text()

    if not (MOUNT / "cgroup.controllers").exists():
        pytest.skip("this machine has no tree of version 2")
    before = kind()
    CgroupBase.find()
    assert kind() == before
