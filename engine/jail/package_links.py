"""Find the links in a folder of packages, and make a tree of links that works in a sandbox.

It runs in the engine, and in an interpreter with the standard library alone. In the tree, a file is a link
to its place in one of the ``LINKED`` folders, and a folder is a folder.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import NamedTuple

# Where sandboxes find the third-party packages that their user chose.
PACKAGES = "/opt/packages"
# The folder itself is 0 if links are replaced. The others are folders of an installer's cache.
LINKED = "/opt/linked"

# Caches that installers link to: the name of their folder, and a file that it has. A link is followed into
# one folder of such a cache, never into the cache. uv writes links to files, conda (allow_softlinks) too.
_CACHES = ((re.compile(r"archive-v\d+"), "../CACHEDIR.TAG"), (re.compile("pkgs"), "urls.txt"))


class LinkRefused(Exception):
    """A link leads out of the folder, to a place that sandboxes must not see."""

    def __init__(self, link: str, target: str, reason: str) -> None:
        super().__init__(f"{link} -> {target}: {reason}")
        self.link, self.target, self.reason = link, target, reason


class Source(NamedTuple):
    """A folder that is bound, and its identity when it was checked."""

    path: str
    device: int
    inode: int


class Links(NamedTuple):
    """The links of a folder that must be replaced; none if it works as it is.

    Attributes:
        sources: the folder, and those of caches. Each is bound below ``LINKED`` under its number.
        texts: a link's path in the folder, and what it leads to in a sandbox.
    """

    sources: list[Source]
    texts: dict[str, str]


def find(folder: str, system: Collection[str], *, is_strict: bool = True) -> Links:
    """Check all links of a folder, whose path is real.

    Args:
        system: folders that have the same path in a sandbox.
        is_strict: refuse a link that leads elsewhere; else it is left, and leads nowhere.

    Raises:
        LinkRefused: a link leads elsewhere.
        OSError: the folder cannot be read.
    """
    found = _Finder(folder, system)
    for path, entry in _walk(folder):
        if not entry.is_symlink():
            continue
        try:
            found.add(path)
        except LinkRefused:
            if is_strict:
                raise
    return Links(found.sources, found.texts)


def build(folder: str, links: Links, place: str) -> None:
    """Fill the empty folder ``place`` with the tree.

    Raises:
        OSError: the folder cannot be read, or there is no room.
    """
    for path, entry in _walk(folder):
        at = f"{place}/{path}"
        if entry.is_dir(follow_symlinks=False) and os.access(entry.path, os.R_OK | os.X_OK):
            os.mkdir(at)
            os.chmod(at, 0o755)  # noqa: S103 - every sandbox has its own uid
        elif path in links.texts:
            os.symlink(links.texts[path], at)
        elif entry.is_symlink():
            os.symlink(os.readlink(entry.path), at)
        else:
            os.symlink(f"{LINKED}/0/{path}", at)


def open_source(source: Source, root: str = "/") -> int:
    """Open a folder below ``root`` without following a link.

    Raises:
        OSError: it is not the folder that was checked.
    """
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in source.path.split("/"):
        if not part:
            continue
        above = descriptor
        try:
            # Of a link, O_PATH | O_NOFOLLOW opens the link itself, which is no folder (open(2)).
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
            descriptor = os.open(part, flags, dir_fd=above)
        finally:
            os.close(above)
    found = os.fstat(descriptor)
    if (found.st_dev, found.st_ino) != (source.device, source.inode):
        os.close(descriptor)
        raise FileNotFoundError(2, "the folder was replaced", source.path)
    return descriptor


def _walk(folder: str, prefix: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = prefix + entry.name
            yield path, entry
            if entry.is_dir(follow_symlinks=False):
                # Closed to us, it is closed to sandboxes.
                with suppress(PermissionError):
                    yield from _walk(entry.path, f"{path}/")


class _Finder:
    def __init__(self, folder: str, system: Collection[str]) -> None:
        found = os.stat(folder)
        self._folder = folder
        self._system = system
        self._owner = found.st_uid
        self._parents: dict[str, str] = {}
        self._places: dict[str, str] = {}
        self.sources = [Source(folder, found.st_dev, found.st_ino)]
        self.texts: dict[str, str] = {}

    def add(self, path: str) -> None:
        link = f"{self._folder}/{path}"
        text = os.readlink(link)
        target = self._resolve(os.path.join(os.path.dirname(link), text))
        if _is_below(target, self._folder):
            if _leaves(os.path.dirname(path), text):
                self.texts[path] = PACKAGES + target[len(self._folder) :]
        elif any(_is_below(target, each) for each in self._system):
            if not os.path.isabs(text):
                self.texts[path] = target
        else:
            self.texts[path] = self._cached(link, target)

    def _resolve(self, path: str) -> str:
        # As os.path.realpath. Links of one folder mostly lead to one folder.
        parent, name = os.path.split(path)
        if name in ("", ".", "..") or os.path.islink(path):
            return os.path.realpath(path)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        return os.path.join(self._parents[parent], name)

    def _cached(self, link: str, target: str) -> str:
        parts = target.split("/")
        # The last part with such a name: that folder holds the least.
        for end in range(len(parts) - 1, 1, -1):
            for name, mark in _CACHES:
                if name.fullmatch(parts[end - 1]) and self._is_mark("/".join([*parts[:end], mark])):
                    root = "/".join(parts[: end + 1])
                    self._check_own(link, target, root)
                    return self._place(root) + target[len(root) :]
        raise LinkRefused(
            link, target, "outside of the folder" if os.path.lexists(target) else "which is gone"
        )

    def _is_mark(self, path: str) -> bool:
        with suppress(OSError):
            found = os.lstat(os.path.normpath(path))
            return stat.S_ISREG(found.st_mode) and found.st_uid == self._owner
        return False

    def _check_own(self, link: str, target: str, root: str) -> None:
        for path in (os.path.dirname(root), root, target, link):
            try:
                found = os.lstat(path)
            except OSError:
                raise LinkRefused(link, target, "which is gone") from None
            if found.st_uid != self._owner:
                raise LinkRefused(link, target, f"which belongs to another user (uid {found.st_uid})")
            kinds = (stat.S_ISDIR, stat.S_ISREG) if path == target else (stat.S_ISDIR,)
            if path != link and not any(is_kind(found.st_mode) for is_kind in kinds):
                raise LinkRefused(link, target, "which is no file or folder")

    def _place(self, root: str) -> str:
        if root not in self._places:
            found = os.lstat(root)
            self._places[root] = f"{LINKED}/{len(self.sources)}"
            self.sources.append(Source(root, found.st_dev, found.st_ino))
        return self._places[root]


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _leaves(folder: str, text: str) -> bool:
    # Whether the way to the target leads out of the packages, if only to come back.
    return os.path.isabs(text) or os.path.normpath(os.path.join(folder, text)).split("/")[0] == ".."
