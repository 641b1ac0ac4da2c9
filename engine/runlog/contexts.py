"""Stores the context of a run as a file that a person can read, once for each content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from ..private_files import PrivateFolder, ResolvedPath
from ..sandbox.context import EncodedContext
from ..slices import utf8_slices
from .encoding import slices_of
from .events import ContextFacts

# A folder beside those of the logs. A context in it has a name (a hard link) in the folder of each log.
# So each log is whole, can be moved or removed alone, and the content goes with its last name.
SHARED = ".contexts"

_NAME = re.compile(r"context-[0-9a-f]+\.", re.ASCII)
_STEP = 1 << 20

Slices = Iterable[bytes | memoryview]


def store_context(folder: PrivateFolder, context: EncodedContext) -> ContextFacts:
    """Write the context, unless it is there; may raise ``OSError``."""
    # The name has the hash, so a context that several runs of a folder share is stored once.
    with context.opened() as data, _shared(folder) as shared:
        sha256 = hashlib.sha256(data).hexdigest()
        name = _store_readable(folder, shared, f"context-{sha256[:16]}", context.value, data)
    return ContextFacts(file=name, sha256=sha256, bytes=context.size, type=type(context.value).__name__)


def remove_unused(shared: PrivateFolder) -> None:
    """Remove the contexts that no log has any more."""
    for name in filter(_NAME.match, shared.names()):
        # Another process may remove it, too. If it links it just now, its log keeps it.
        with suppress(OSError):
            if shared.names_of(name) == 1:
                shared.remove(name)


@contextmanager
def _shared(folder: PrivateFolder) -> Generator[PrivateFolder | None]:
    try:
        with PrivateFolder.open(ResolvedPath(folder.path.parent)) as above:
            found = above.below(SHARED)
    except OSError:
        yield None
        return
    with found:
        yield found if found.is_own else None


def _store_readable(
    folder: PrivateFolder, shared: PrivateFolder | None, stem: str, context: object, encoded: memoryview
) -> str:
    for suffix, slices in _forms(context, encoded):
        name = f"{stem}.{suffix}"
        try:
            if folder.is_own_file(name) or (shared and _link_equal(shared, folder, name, slices())):
                return name
            with folder.replacing(name) as file:
                file.writelines(slices())
        except (TypeError, ValueError):
            # JSON cannot hold it.
            continue
        # Some file systems have no hard links: then each log has its own.
        with suppress(OSError):
            if shared is not None:
                folder.link(name, shared)
        return name
    raise AssertionError("every value has a repr")


def _link_equal(shared: PrivateFolder, folder: PrivateFolder, name: str, slices: Slices) -> bool:
    """Link a shared file into a folder if it has this content; return whether it has."""
    with suppress(OSError):
        if shared.is_own_file(name):
            with shared.read(name) as file:
                # Somebody may have edited a log: a hash in a name proves nothing.
                is_equal = _has_content(file, slices)
            if is_equal:
                shared.link(name, folder)
                return True
            shared.remove(name)
    return False


def _has_content(file: BinaryIO, slices: Slices) -> bool:
    for each in slices:
        view = memoryview(each)
        for start in range(0, len(view), _STEP):
            part = view[start : start + _STEP]
            if memoryview(file.read(len(part))) != part:
                return False
    return not file.read(1)


def _forms(context: object, encoded: memoryview) -> Iterator[tuple[str, Callable[[], Slices]]]:
    # A person reads this file: text as it is, data as JSON, and what JSON cannot hold as its repr.
    if isinstance(context, str):
        yield "txt", lambda: [encoded]
        return
    yield "json", lambda: slices_of(json.JSONEncoder(indent=1).iterencode(context))
    yield "repr.txt", lambda: utf8_slices(repr(context))
