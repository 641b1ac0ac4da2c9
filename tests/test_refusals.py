"""What is said to do where the kernel refuses a sandbox: only what helps there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from supdist.engine import SandboxUnavailable
from supdist.engine.sandbox import doctor_remedies, refusals
from supdist.engine.sandbox.diagnostics import sandbox_unavailable_for, translate_shortage
from supdist.engine.sandbox.refusals import Privileges, read_privileges, remedy_for_refusal

ALL = (1 << 41) - 1
# Docker's default for root.
DEFAULT = 0xA80425FB
USER = Privileges(
    is_root=False, capabilities=0, available=ALL, has_filter=False, has_covers=False, is_container=False
)
ROOT = replace(USER, is_root=True, capabilities=ALL)
IN_DOCKER = replace(
    ROOT, capabilities=DEFAULT, available=DEFAULT, is_container=True, has_filter=True, has_covers=True
)
UNCONFINED = (
    "`--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt "
    "systempaths=unconfined`"
)


@pytest.mark.parametrize(
    ("step", "here", "words"),
    [
        ("user_namespace", replace(USER, apparmor_restricts=True), "apparmor_restrict_unprivileged_userns=0"),
        ("user_namespace", replace(USER, has_user_namespaces=False), "unprivileged_userns_clone=1"),
        ("user_namespace", USER, "`unshare --user --map-root-user --mount --pid --fork --mount-proc true`"),
        ("user_namespace", replace(USER, has_filter=True), "RestrictNamespaces="),
        ("user_namespace", replace(USER, is_container=True, has_filter=True), UNCONFINED),
        ("mounts", replace(USER, is_container=True), "apparmor=unconfined"),
        ("zygote_root", IN_DOCKER, f"`--cap-add SYS_ADMIN` and {UNCONFINED}"),
        ("zygote_root", replace(IN_DOCKER, capabilities=DEFAULT | 1 << 21), UNCONFINED),
        ("zygote_root", replace(ROOT, capabilities=0), "setpriv"),
        ("zygote_root", replace(ROOT, capabilities=0, is_container=True), "setpriv"),
        ("id_map", replace(IN_DOCKER, available=0, capabilities=0), "--cap-add SETGID --cap-add SETUID"),
        ("proc", IN_DOCKER, "`--security-opt systempaths=unconfined`"),
        ("proc", replace(USER, has_covers=True), "mountinfo"),
        ("proc", replace(USER, is_container=True, has_filter=True), UNCONFINED),
        ("landlock", IN_DOCKER, "doctor --json"),
        ("exec", USER, "doctor --json"),
    ],
)
def test_the_remedy_fits_the_cause(step: str, here: Privileges, words: str) -> None:
    assert words in remedy_for_refusal(step, here)


@pytest.mark.parametrize(
    "step", ["user_namespace", "namespaces", "zygote_root", "id_map", "mounts", "proc", "exec"]
)
@pytest.mark.parametrize("here", [USER, ROOT, replace(ROOT, capabilities=0), IN_DOCKER])
def test_no_container_option_is_named_where_none_is_the_cause(step: str, here: Privileges) -> None:
    remedy = remedy_for_refusal(step, here)
    assert "--privileged" not in remedy, "it gives more than is needed"
    assert ("--security-opt" in remedy or "--cap-add" in remedy) <= here.is_container
    assert ("apparmor_restrict" in remedy or "userns_clone" in remedy) is False


def test_root_is_told_of_no_setting_for_ordinary_users() -> None:
    here = replace(ROOT, apparmor_restricts=True, has_user_namespaces=False)
    assert "sysctl" not in remedy_for_refusal("zygote_root", here)


def test_facts_are_read_from_proc(tmp_path: Path) -> None:
    for name in ("self", "1", "sys/kernel"):
        (tmp_path / "proc" / name).mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text(
        "Name:\tx\nCapEff:\t00000000a80425fb\nCapBnd:\t0000000000000001\nSeccomp:\t2\nSeccomp_filters:\t1\n"
    )
    (tmp_path / "proc/1/status").write_text("CapBnd:\t00000000a80425fb\n")
    (tmp_path / "proc/self/mountinfo").write_text(
        "1 0 0:1 / /proc rw - proc proc rw\n2 1 0:1 /bus /proc/bus ro - proc proc rw\n"
    )
    (tmp_path / "proc/sys/kernel/apparmor_restrict_unprivileged_userns").write_text("1\n")
    (tmp_path / "proc/sys/kernel/unprivileged_userns_clone").write_text("0\n")
    (tmp_path / ".dockerenv").touch()
    found = read_privileges(tmp_path)
    assert (found.capabilities, found.available) == (DEFAULT, DEFAULT)
    assert (found.has_filter, found.has_covers, found.is_container) == (True, True, True)
    assert (found.apparmor_restricts, found.has_user_namespaces) == (True, False)
    nothing = read_privileges(tmp_path / "none")
    assert (nothing.has_filter, nothing.has_covers, nothing.is_container) == (False, False, False)
    assert (nothing.apparmor_restricts, nothing.has_user_namespaces) == (False, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to lose")
def test_root_without_capabilities_is_told_that_they_were_taken(tmp_path: Path) -> None:
    """Whatever /.dockerenv says: no option of a container gives them back to this process."""
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    done = subprocess.run(
        [setpriv, "--inh-caps=-all", "--bounding-set=-all",
         sys.executable, "-m", "supdist.engine", "exec", "print(1)"],
        check=False, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 4
    assert "This process is root without CAP_SYS_ADMIN." in done.stderr
    assert "--privileged" not in done.stderr


def test_other_errors_get_no_remedy_that_is_guessed() -> None:
    for step in ("exec", "rlimits", "mounts", "pivot_root"):
        assert sandbox_unavailable_for(step, errno.ENOENT).remedy == refusals.REPORT
    assert "CONFIG_SECCOMP_FILTER" in sandbox_unavailable_for("seccomp", errno.EINVAL).remedy
    assert "fs.mount-max" in sandbox_unavailable_for("zygote_root", errno.ENOSPC).remedy
    assert "ulimit -u" not in sandbox_unavailable_for("fork", errno.EINVAL).remedy


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", sys.executable), "interpreter was removed"),
        (PermissionError(errno.EACCES, "closed", f"{tempfile.gettempdir()}/x/y"), "TMPDIR"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "TMPDIR"),
        (PermissionError(errno.EACCES, "closed", "/srv/other"), "`supdist-engine doctor`"),
    ],
)
def test_tmpdir_is_named_only_where_it_is_the_cause(error: OSError, words: str) -> None:
    with pytest.raises(SandboxUnavailable) as caught, translate_shortage("It cannot be started"):
        raise error
    assert words in caught.value.remedy


def test_the_doctors_remedies_fit_the_machine() -> None:
    assert "libseccomp2" in doctor_remedies.filter_remedy("process", has_filter=False)
    assert "docker info" in doctor_remedies.filter_remedy("docker", has_filter=False)
    assert doctor_remedies.filter_remedy("process", has_filter=True) == doctor_remedies.REPORT
    assert "Boot" in doctor_remedies.overlay_remedy((5, 10))
    assert "Boot" not in doctor_remedies.overlay_remedy((5, 11))
    assert "6.7 or newer" in doctor_remedies.landlock_remedy((6, 6))
    assert "lsm=" in doctor_remedies.landlock_remedy((6, 7))
    assert "Mount /sys/fs/cgroup" in doctor_remedies.cgroup_remedy(is_root=True, has_systemd=True)
    assert "systemd-run --user" in doctor_remedies.cgroup_remedy(is_root=False, has_systemd=True)
    assert "systemd-run" not in doctor_remedies.cgroup_remedy(is_root=False, has_systemd=False)
