"""Says why the kernel may have refused a namespace or a mount to this process, and what to do."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

# linux/capability.h
_SETGID, _SETUID, _SYS_ADMIN = 6, 7, 21
_NEEDED = {
    "namespaces": (_SYS_ADMIN,),
    "zygote_root": (_SYS_ADMIN,),
    "id_map": (_SETGID, _SETUID),
    "identity": (_SETGID, _SETUID),
}
_NAMES = {_SETGID: "SETGID", _SETUID: "SETUID", _SYS_ADMIN: "SYS_ADMIN"}

# Tried with docker: without the last, no user namespace may mount a /proc of its own.
_OPTIONS = (
    "`--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt "
    "systempaths=unconfined`"
)
REPORT = "Please report this with the output of `supdist-engine doctor --json`: no cause of it is known."


@dataclass(frozen=True, slots=True, kw_only=True)
class Privileges:
    """What this process and this machine allow.

    Attributes:
        capabilities: those of this process, as a bit mask (capabilities(7)).
        available: those that a process of this container or machine can have.
        has_filter: whether a filter of system calls is active on this process (seccomp(2)).
        has_covers: whether other mounts cover parts of /proc.
        apparmor_restricts: whether AppArmor takes the rights of users' namespaces.
        has_user_namespaces: whether ordinary users may make some (Debian's setting).
    """

    is_root: bool
    capabilities: int
    available: int
    has_filter: bool
    has_covers: bool
    is_container: bool
    apparmor_restricts: bool = False
    has_user_namespaces: bool = True
    release: tuple[int, int] = (0, 0)


def read_privileges(root: Path = Path("/")) -> Privileges:
    """Read them from /proc below ``root``."""
    own, first = _read(root / "proc/self/status"), _read(root / "proc/1/status")
    mounts = [line.split() for line in _read(root / "proc/self/mountinfo").splitlines()]
    return Privileges(
        is_root=os.geteuid() == 0,
        capabilities=_number(own, "CapEff"),
        available=_number(first, "CapBnd"),
        has_filter=_number(own, "Seccomp") == 2,
        has_covers=any(len(line) > 4 and _covers(line[4]) for line in mounts),
        is_container=any((root / name).exists() for name in (".dockerenv", "run/.containerenv")),
        apparmor_restricts=_setting(root, "apparmor_restrict_unprivileged_userns") == "1",
        has_user_namespaces=_setting(root, "unprivileged_userns_clone") != "0",
        release=kernel_release(),
    )


def kernel_release() -> tuple[int, int]:
    """Return the kernel's version, such as (6, 18)."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def remedy_for_refusal(step: str, here: Privileges) -> str:
    """Return what to do where the kernel refused a step (EPERM, EACCES)."""
    if step == "proc":
        return _for_proc(here)
    if step not in (
        "user_namespace",
        "namespaces",
        "zygote_root",
        "id_map",
        "identity",
        "mounts",
        "pivot_root",
    ):
        return REPORT
    lacking = [number for number in _NEEDED.get(step, ()) if not here.capabilities >> number & 1]
    if here.is_root and lacking:
        return _for_capabilities(lacking, here)
    if not here.is_root:
        if here.apparmor_restricts:
            return (
                "AppArmor forbids user namespaces to ordinary users: allow them with "
                "`sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, or run as root."
            )
        if not here.has_user_namespaces:
            return (
                "User namespaces are switched off for ordinary users: `sudo sysctl -w "
                "kernel.unprivileged_userns_clone=1`."
            )
    return _for_filter(here)


def _for_proc(here: Privileges) -> str:
    if not here.has_covers:
        return _for_filter(here)
    if here.is_container:
        return (
            "The container covers parts of /proc: start it with `--security-opt systempaths=unconfined` "
            "(podman: `unmask=ALL`; Kubernetes: `procMount: Unmasked`)."
        )
    return "Something covers parts of /proc: unmount it. `grep ' /proc/' /proc/self/mountinfo` lists it."


def _for_capabilities(lacking: list[int], here: Privileges) -> str:
    names = " and ".join(f"CAP_{_NAMES[number]}" for number in lacking)
    if here.is_container and any(not here.available >> number & 1 for number in lacking):
        added = " ".join(f"--cap-add {_NAMES[number]}" for number in lacking)
        return f"This container's root lacks {names}: start it with `{added}` and {_OPTIONS}."
    return (
        f"This process is root without {names}. Start it with all capabilities, or as an ordinary user: "
        "`setpriv`, or `CapabilityBoundingSet=` of a unit, took them."
    )


def _for_filter(here: Privileges) -> str:
    if here.is_container and here.has_filter:
        return f"The container's filter of system calls may refuse it: start it with {_OPTIONS}."
    if here.is_container:
        return (
            "AppArmor or SELinux may refuse it in this container: start it with `--security-opt "
            "apparmor=unconfined` or `--security-opt label=disable`."
        )
    if here.has_filter:
        return (
            "A filter of system calls is active on this process and may refuse it, as those of systemd units "
            "(`RestrictNamespaces=`, `SystemCallFilter=`), snap and flatpak do: run outside of it."
        )
    return (
        "This must work as the same user: `unshare --user --map-root-user --mount --pid --fork --mount-proc "
        "true`. If it does not, AppArmor or SELinux may refuse it: `dmesg` says so."
    )


def _covers(place: str) -> bool:
    # This one covers nothing that a namespace needs.
    return place.startswith("/proc/") and not place.startswith("/proc/sys/fs/binfmt_misc")


def _number(status: str, name: str) -> int:
    found = re.search(rf"^{name}:\s*([0-9a-fA-F]+)$", status, re.MULTILINE)
    return int(found[1], 16) if found else 0


def _setting(root: Path, name: str) -> str:
    return _read(root / "proc/sys/kernel" / name).strip()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
