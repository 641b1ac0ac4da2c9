"""Compile ``seccomp.json`` to a filter of system calls, and install it (seccomp(2))."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ...sandbox_image import linux
from ...sandbox_image.environment import SECCOMP_PROFILE

if TYPE_CHECKING:
    from types import ModuleType

PROFILE = Path(SECCOMP_PROFILE)

_SECCOMP_MODE_FILTER = 2
_INSTRUCTION_BYTES = 8
_BINARY_TREE = 2
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
# Linux 6.18 ends at 470. Calls from here on get the default of the profile.
_NUMBERS_END = 512

_RETURNS = {"SCMP_ACT_ALLOW": 0x7FFF0000, "SCMP_ACT_ERRNO": 0x00050000}
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}

Action = Literal["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"]
Operator = Literal[
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
]


class SeccompUnavailable(Exception):
    """There is no libseccomp, or no profile for this processor."""


# An unknown key is an error, since it may narrow a rule.
class _Part(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    pass


class Condition(_Part, frozen=True):
    """A comparison of one argument; MASKED_EQ: argument & ``value`` == ``value_two``."""

    index: int
    op: Operator
    value: int
    value_two: int = 0


class Rule(_Part, frozen=True):
    """The action for calls that meet all conditions."""

    names: tuple[str, ...]
    action: Action
    errno_ret: int = errno.EPERM
    args: tuple[Condition, ...] = ()
    comment: str = ""


class Architecture(_Part, frozen=True):
    """A processor."""

    architecture: str
    # Its other ABIs stay refused, so this list is empty.
    sub_architectures: tuple[()]


class Profile(_Part, frozen=True):
    """The whole profile."""

    default_action: Literal["SCMP_ACT_ERRNO"]
    default_errno_ret: int
    arch_map: tuple[Architecture, ...]
    syscalls: tuple[Rule, ...]


def parse_profile(text: bytes) -> Profile:
    """Parse a profile.

    Raises:
        ValueError: it is not JSON, or holds something unknown.
    """
    try:
        return msgspec.json.decode(text, type=Profile)
    except msgspec.MsgspecError as error:
        raise ValueError(f"seccomp profile: {error}") from error


def compile_filter(*, refused: frozenset[str] = frozenset(), shared_anonymous: bool = True) -> bytes:
    """Compile the profile to BPF for this processor.

    Args:
        refused: calls that get the default.
        shared_anonymous: whether mmap(2) gives shared memory without a file.

    Raises:
        SeccompUnavailable: see there.
        ValueError: the profile is wrong.
        OSError: libseccomp refuses a rule.
    """
    profile = parse_profile(PROFILE.read_bytes())
    library = _load_library()
    known = {getattr(library.Arch, each.architecture.removeprefix("SCMP_ARCH_")) for each in profile.arch_map}
    if library.system_arch() not in known:
        raise SeccompUnavailable(f"{PROFILE.name} was not written for {os.uname().machine}")
    default = _returns(profile.default_action, profile.default_errno_ret)
    program = library.SyscallFilter(default)
    # 32-bit calls have other numbers and would pass a filter written for 64 bits.
    program.set_attr(library.Attr.ACT_BADARCH, library.KILL_PROCESS)
    program.set_attr(library.Attr.CTL_OPTIMIZE, _BINARY_TREE)
    newest = 0
    for rule in profile.syscalls:
        action = _returns(rule.action, rule.errno_ret)
        for name in rule.names:
            variants = [rule.args]
            if name == "mmap" and not shared_anonymous:
                # Not both flags, so one or the other must be off.
                variants = [_without_flag(rule.args, flag) for flag in (_MAP_SHARED, _MAP_ANONYMOUS)]
            number = library.resolve_syscall(library.Arch.NATIVE, name)
            newest = max(newest, number)
            # Below zero: this libseccomp does not know the call, or the processor does not have it.
            if number >= 0 and action != default and name not in refused:
                for conditions in variants:
                    program.add_rule(action, number, *(_argument(library, each) for each in conditions))
    # A newer libc tries calls that this libseccomp does not know, and falls back only on ENOSYS.
    for number in range(newest + 1, _NUMBERS_END):
        program.add_rule(_returns("SCMP_ACT_ERRNO", errno.ENOSYS), number)
    return _export(program)


def install(program: bytes) -> None:
    """Install a filter.

    Raises:
        OSError: the kernel refuses it.
    """
    # It needs no_new_privs, and descendants inherit it.
    head = _Program(len(program) // _INSTRUCTION_BYTES, program)
    linux.prctl(linux.PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(head))


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("instructions", ctypes.c_ushort), ("program", ctypes.c_char_p))


def _returns(action: Action, code: int) -> int:
    return _RETURNS[action] | (code if action == "SCMP_ACT_ERRNO" else 0)


def _argument(library: ModuleType, condition: Condition) -> Any:
    return library.Arg(condition.index, _OPERATORS[condition.op], condition.value, condition.value_two)


def _without_flag(conditions: tuple[Condition, ...], flag: int) -> tuple[Condition, ...]:
    return tuple(msgspec.structs.replace(each, value=each.value | flag) for each in conditions)


def _load_library() -> ModuleType:
    # At its import pyseccomp searches its library with ldconfig and compilers. That takes 30 ms and fails in
    # the zygote's root file system. The dynamic linker finds the library by its name.
    find_library = ctypes.util.find_library
    names: Any = {"seccomp": "libseccomp.so.2"}  # Any: dict.get does not name its parameter
    ctypes.util.find_library = names.get
    try:
        import pyseccomp  # pyright: ignore[reportMissingTypeStubs]  # it has none
    except (ImportError, AttributeError, OSError) as error:
        raise SeccompUnavailable(f"libseccomp 2.5 or newer is needed: {error}") from error
    finally:
        ctypes.util.find_library = find_library
    return pyseccomp


def _export(program: Any) -> bytes:
    with open(os.memfd_create("seccomp"), "w+b") as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()
