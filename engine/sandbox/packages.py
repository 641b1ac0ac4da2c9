"""The folder of third-party packages that guest code may import from."""

from __future__ import annotations

import os
import sysconfig
import tempfile
from pathlib import Path
from typing import NamedTuple

from ..errors import TaskError
from ..jail import package_links, rootfs
from ..jail.package_links import LINKED, PACKAGES, LinkRefused, Links, Source

_MOST_NAMES = 40

_REMEDY = "make it with `pip install --target DIR PACKAGE ...`, and a pip of the engine's own Python"
_COPY = (
    "Links are followed inside of the folder, and to the files of its owner in uv's and conda's caches. "
    "Make a folder without links: `uv pip install --link-mode copy --target DIR PACKAGE ...`, or `cp -rL`"
)


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
        with os.scandir(path) as entries:
            is_environment = any(each.name == "pyvenv.cfg" for each in entries)
        found = os.stat(path)
    except FileNotFoundError:
        raise TaskError(f"packages: there is no folder {folder!r}; {_REMEDY}") from None
    except NotADirectoryError:
        raise TaskError(f"packages: {folder!r} is no folder; {_REMEDY}") from None
    except (OSError, ValueError) as error:
        raise TaskError(f"packages: {folder!r} cannot be read ({error}); {_REMEDY}") from error
    if is_environment:
        # Its links to an interpreter would be refused, and the packages are not where imports look.
        inside = sorted(Path(path).glob("lib/python3*/site-packages"))
        place = str(inside[0].relative_to(path)) if inside else "lib/python3.X/site-packages"
        raise TaskError(
            f"packages: {folder!r} is a virtual environment; give {os.path.join(folder, place)!r}"
        )
    return Packages(path, found.st_dev, found.st_ino, found.st_ctime_ns)


def check_links(folder: str) -> tuple[Source, Links]:
    """Return the identity of a folder, whose path is real, and the links that must be replaced.

    Raises:
        TaskError: it cannot be read, or a link in it leads to where sandboxes may not look.
    """
    own = {os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    try:
        # The engine's own environment holds what documents are converted with. The rest is not needed.
        links = package_links.find(folder, rootfs.system_folders(), is_strict=folder not in own)
    except LinkRefused as error:
        raise TaskError(
            f"packages: the link {error.link} leads to {error.target}, {error.reason}. {_COPY}"
        ) from error
    except OSError as error:
        raise TaskError(f"packages: {folder!r} cannot be read ({error}); {_REMEDY}") from error
    return links.sources[0], links


def container_mounts(folder: str, parent: str, *, is_remote: bool) -> list[tuple[str, str]]:
    """Return what a container mounts for a folder, as pairs of a host path and its place. Blocks.

    Args:
        parent: a folder below which links are written, if some must be replaced.

    Raises:
        TaskError: as ``check_links``; or the daemon cannot be given its links.
        OSError: ``parent`` has no room.
    """
    _, links = check_links(folder)
    if not links.texts:
        return [(folder, PACKAGES)]
    if is_remote:
        raise TaskError(
            f"packages: {folder!r} has links, and the Docker daemon is on another machine. {_COPY}"
        )
    owner = os.stat(folder).st_uid
    if owner != os.geteuid():
        # The daemon opens a path as root. Its owner could put a link there after the check.
        raise TaskError(f"packages: {folder!r} has links and belongs to another user (uid {owner}). {_COPY}")
    tree = tempfile.mkdtemp(prefix="packages-", dir=parent)
    os.chmod(tree, 0o755)  # noqa: S103 - the guest is another user; on the host, its parent is closed
    package_links.build(folder, links, tree)
    return [(tree, PACKAGES), *((each.path, f"{LINKED}/{at}") for at, each in enumerate(links.sources))]


def importable(folder: str) -> list[str]:
    """Return the names of the first forty modules in the folder, sorted.

    Raises:
        OSError: it cannot be read.
    """
    names: set[str] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name.partition(".")[0]
            # Not the entry's own method: it raises for a link that leads in a circle.
            is_module = (os.path.isdir(entry.path) and "." not in entry.name) or entry.name.endswith(
                (".py", ".so")
            )
            if is_module and name.isidentifier() and not name.startswith("_"):
                names.add(name)
    return sorted(names)[:_MOST_NAMES]
