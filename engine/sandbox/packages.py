"""The folder of third-party packages that guest code may import from."""

from __future__ import annotations

import os
from typing import NamedTuple

from ..errors import TaskError

_MOST_NAMES = 40

_REMEDY = "make it with `pip install --target DIR PACKAGE ...`, and a pip of the engine's own Python"


class Packages(NamedTuple):
    """A folder at one point in time."""

    # The key of a zygote: a guest that is built ahead sees the folder as it was then.
    path: str
    device: int
    inode: int
    changed_ns: int


def find_packages(folder: str) -> Packages:
    """Return the folder's present state.

    Raises:
        TaskError: it is missing, no folder, or unreadable.
    """
    try:
        path = os.path.realpath(folder, strict=True)
        # Opened, too: it must be readable.
        os.scandir(path).close()
        found = os.stat(path)
    except FileNotFoundError:
        raise TaskError(f"packages: there is no folder {folder!r}; {_REMEDY}") from None
    except NotADirectoryError:
        raise TaskError(f"packages: {folder!r} is no folder; {_REMEDY}") from None
    except (OSError, ValueError) as error:
        raise TaskError(f"packages: {folder!r} cannot be read ({error}); {_REMEDY}") from error
    return Packages(path, found.st_dev, found.st_ino, found.st_ctime_ns)


def importable(folder: str) -> list[str]:
    """Return the names of the first forty modules in the folder, sorted.

    Raises:
        OSError: it cannot be read.
    """
    names: set[str] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name.partition(".")[0]
            is_module = (entry.is_dir() and "." not in entry.name) or entry.name.endswith((".py", ".so"))
            if is_module and name.isidentifier() and not name.startswith("_"):
                names.add(name)
    return sorted(names)[:_MOST_NAMES]
