"""Read what a person names as context: files, folders, patterns, stdin."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio import to_thread

from ..errors import TaskError
from ..sandbox.factory import keep_backends
from ..sandbox.sync_sandbox import blocking_calls
from ..trust import UNBOUND, Permissions
from .content import content_of
from .converter import Converter
from .files import MOST_BYTES, Found, below, is_pattern, matching, read_bytes

STDIN = "-"

Value = str | list[Any] | dict[str, Any]


@dataclass(frozen=True, slots=True)
class Context:
    """A context that was read.

    Attributes:
        value: the text or JSON value of one file, or the texts of several by name.
        warnings: what was guessed or skipped, each a sentence.
    """

    value: Value
    warnings: list[str] = field(default_factory=list[str])


async def read_context(
    paths: Sequence[str | os.PathLike[str]],
    *,
    folder: Path | None = None,
    permissions: Permissions = UNBOUND,
    name: str = "context",
    stdin: Callable[[], bytes] | None = None,
    raw_html: bool = False,
    many: bool = False,
) -> Context:
    """Read files, folders, patterns such as ``papers/*.pdf``, and ``-`` for stdin.

    One file gives its text, and a .json file its value. A folder, a pattern or several paths give a dict of
    texts by name.

    Args:
        folder: where relative paths begin; by default the working directory.
        permissions: of the file that names the paths. Each file is checked.
        name: what names the paths, for messages.
        stdin: reads stdin; by default ``sys.stdin``.
        raw_html: keep HTML as it is.
        many: return a dict for one file, too.

    Raises:
        TaskError: a file is missing, not permitted, or has no text.
        SandboxUnavailable: a document must be converted, and no sandbox can be had here.
    """
    reader = _Reader(Path() if folder is None else folder, permissions, name, stdin, raw_html)
    typed = [os.fspath(each) for each in paths]
    if not typed:
        raise TaskError(f"{name}: name a file")
    async with keep_backends():
        if len(typed) == 1 and not many and not reader.is_several(typed[0]):
            return Context(await reader.one(typed[0]), reader.warnings)
        return Context(await reader.several(typed), reader.warnings)


async def aread_documents(*paths: str | os.PathLike[str], raw_html: bool = False) -> Value:
    """Read documents as the context of a run. Guesses and skipped files are Python warnings.

    One file gives its text, and a .json file its value. A folder, a pattern or several paths give a dict of
    texts by name. ``-`` is stdin. PDF, HTML, Office and EPUB files are converted in a sandbox.

    Args:
        raw_html: keep HTML as it is.

    Raises:
        TaskError: a file is missing, or has no text.
        SandboxUnavailable: a document must be converted, and no sandbox can be had here.
    """
    return _warned(await read_context(paths, name="read_documents", raw_html=raw_html))


def read_documents(*paths: str | os.PathLike[str], raw_html: bool = False) -> Value:
    """Wait for ``aread_documents``, whose parameters and errors these are."""
    return _warned(wait_for(lambda: read_context(paths, name="read_documents", raw_html=raw_html)))


def _warned(found: Context) -> Value:
    for each in found.warnings:
        # The line that called the public function.
        warnings.warn(each, stacklevel=3)
    return found.value


def wait_for(work: Callable[[], Coroutine[Any, Any, Context]]) -> Context:
    """Wait for a context, also in the thread of a running event loop."""
    with blocking_calls() as thread:
        return thread.call(work)


class _Reader:
    def __init__(
        self,
        folder: Path,
        permissions: Permissions,
        name: str,
        stdin: Callable[[], bytes] | None,
        raw_html: bool,
    ) -> None:
        self.folder = folder
        self.permissions = permissions
        self.name = name
        self.stdin = stdin
        self.raw_html = raw_html
        self.warnings: list[str] = []
        self.converter = Converter()

    def is_several(self, typed: str) -> bool:
        if typed == STDIN:
            return False
        return _is_folder(self.folder / typed) or is_pattern(typed, self.folder)

    async def one(self, typed: str) -> Value:
        if typed == STDIN:
            return await self._content("stdin", await self._stdin())
        path = self._permitted(self.folder / typed)
        return await self._content(typed, await self._bytes(typed, path))

    async def several(self, typed: Sequence[str]) -> dict[str, Any]:
        texts: dict[str, Any] = {}
        read = set[tuple[str, str]]()
        total = 0
        for word in typed:
            if word == STDIN:
                texts["stdin"] = await self._content("stdin", await self._stdin(), parse_json=False)
                total += len(texts["stdin"])
                continue
            files, may_skip = await self._files(word, alone=len(typed) == 1)
            skipped: list[str] = []
            for each in files:
                place = _place_of(each.path)
                if each.name in texts or place in read:
                    # An earlier word named it.
                    continue
                read.add(place)
                try:
                    data = await self._bytes(each.name, each.path)
                    text = await self._content(each.name, data, parse_json=False)
                except TaskError as error:
                    # Of a folder, the rest is still of use. A file that was named must be readable.
                    if not may_skip:
                        raise
                    skipped.append(str(error).removeprefix(f"{self.name}: "))
                    continue
                total += len(text)
                if total > MOST_BYTES:
                    raise TaskError(
                        f"{self.name}: the files hold more than {MOST_BYTES >> 20:,} MiB; name fewer"
                    )
                texts[each.name] = text
            self.warnings += [f"skipped: {reason}" for reason in skipped]
            if len(skipped) == len(files):
                raise TaskError(f"{self.name}: no file of {word} can be read. {skipped[0]}")
        return texts

    async def _files(self, word: str, *, alone: bool) -> tuple[list[Found], bool]:
        path = self.folder / word
        if _is_folder(path):
            place = self._permitted(path)
            found = await to_thread.run_sync(below, place, word, self.warnings.append)
            prefix = "" if alone else f"{word.rstrip('/')}/"
            return [Found(f"{prefix}{each.name}", self._permitted(each.path)) for each in found], True
        if is_pattern(word, self.folder):
            # Checked one by one: a link among them may lead elsewhere.
            found = await to_thread.run_sync(matching, word, self.folder)
            return [Found(each.name, self._permitted(each.path)) for each in found], True
        return [Found(word, self._permitted(path))], False

    def _permitted(self, path: Path) -> Path:
        return self.permissions.readable(path, self.name)

    async def _stdin(self) -> bytes:
        if self.stdin is not None:
            return self.stdin()
        # None if the descriptor was closed before the start.
        if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]  # typeshed does not know that
            raise TaskError(f"{self.name}: cannot read stdin: it is closed")
        # As a file: this event loop also serves others.
        return await self._bytes("stdin", Path("/dev/stdin"))

    async def _bytes(self, shown: str, path: Path) -> bytes:
        try:
            return await read_bytes(path)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise TaskError(f"{self.name}: cannot read {shown}: {why}") from error

    async def _content(self, shown: str, data: bytes, *, parse_json: bool = True) -> Any:
        return await content_of(
            shown,
            data,
            self.converter,
            self.warnings.append,
            raw_html=self.raw_html,
            parse_json=parse_json,
        )


def _place_of(path: Path) -> tuple[str, str]:
    # Of the folder alone: a link is a name of its own.
    return os.path.realpath(path.parent), path.name


def _is_folder(path: Path) -> bool:
    # pathlib raises for a path that is too long or may not be looked at. Reading it reports that.
    return os.path.isdir(path)
