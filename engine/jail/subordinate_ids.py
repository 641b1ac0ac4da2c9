"""Map an ordinary user's subordinate ids (subuid(5)), so that each sandbox gets a uid of its own.

The kernel counts descriptors in flight, pages of pipes and watches by user. Sandboxes of one uid share them.
It runs in the interpreter that becomes the zygote, with the standard library alone.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress

_HELPERS = (("newuidmap", "etc/subuid"), ("newgidmap", "etc/subgid"))
_FEWEST = 1024


@contextmanager
def mapper(
    uid: int, gid: int, private_paths: Iterable[str], *, root: str = "/"
) -> Generator[Callable[[], None]]:
    """Yield a function that maps 0 to the user, and 1 upwards to subordinate ids, after unshare(2).

    Where something is missing it maps nothing: no helper, no range, or a path that only the user can read,
    which a sandbox of another uid could not read.

    Args:
        private_paths: what sandboxes must be able to read.
        root: the folder with the helpers and their files.
    """
    orders = [
        _order(f"{root}usr/bin/{name}", root + file, uid, own)
        for (name, file), own in zip(_HELPERS, (uid, gid), strict=True)
    ]
    if not all(orders) or not all(map(_is_public, private_paths)):
        yield lambda: None
        return
    parent = os.getpid()
    waiting, go = os.pipe()
    # The helpers must run outside of the new user namespace.
    helper = os.fork()
    if helper == 0:
        _run_helpers(waiting, go, parent, orders)
    os.close(waiting)

    def map_ids() -> None:
        with suppress(BrokenPipeError):
            os.write(go, b"x")
        os.waitpid(helper, 0)

    try:
        yield map_ids
    finally:
        os.close(go)


def _run_helpers(waiting: int, go: int, parent: int, orders: Iterable[list[str]]) -> None:
    try:
        os.close(go)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        if os.read(waiting, 1):
            for path, *extents in orders:
                os.waitpid(os.posix_spawn(path, [path, str(parent), *extents], {}), 0)
    finally:
        os._exit(0)


def _order(helper: str, file: str, uid: int, own: int) -> list[str]:
    start, count = _range(file, uid)
    if not os.path.exists(helper) or count < _FEWEST:
        return []
    return [helper, "0", str(own), "1", "1", str(start), str(count)]


# The largest range of the user; the user is named or numbered.
def _range(file: str, uid: int) -> tuple[int, int]:
    owners = {str(uid)}
    with suppress(KeyError):
        owners.add(pwd.getpwuid(uid).pw_name)
    found = [(0, 0)]
    with suppress(OSError), open(file, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            owner, *numbers = line.strip().split(":")
            if owner in owners and len(numbers) == 2 and all(each.isdecimal() for each in numbers):
                found.append((int(numbers[0]), int(numbers[1])))
    return max(found, key=lambda each: each[1])


def _is_public(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return True  # a broken link, which nobody can read
    needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
    return mode & needed == needed
