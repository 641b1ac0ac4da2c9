"""Answers by what was asked, in SQLite. Processes may share a file."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import sqlite3
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import msgspec

from ...handlers import Completion, Message
from ...sandbox_image.text import KEEP_SURROGATES
from ..errors import CacheError
from ..private_files import PrivateFolder, ResolvedPath, resolved
from ..slices import Steps, text_slices
from ..trust.seals import Seal

P = ParamSpec("P")
T = TypeVar("T")

_KEPT = ("stop", "length")
_KEY_VERSION = 1
_SCHEMA_VERSION = 1
_APPLICATION = 0x73757064  # "supd": how file(1) and we know the file as ours

_memories = itertools.count()

_JOURNALS = ("-wal", "-shm", "-journal")

_COUNT_STRANGE = "SELECT count(*) FROM sqlite_master WHERE type NOT IN ('table', 'index')"
_SELECT = "SELECT answer FROM answers WHERE key = ?"
_SELECT_MARKED = "SELECT answer, mark FROM answers LEFT JOIN marks USING (key) WHERE key = ?"

_REMEDIES = {
    sqlite3.SQLITE_NOTADB: "it is no SQLite database; choose another path",
    sqlite3.SQLITE_CORRUPT: "it is damaged; move it away, and a new one is made",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; choose a path in a folder that can be written",
    sqlite3.SQLITE_READONLY: "it cannot be written; choose a path in a folder that can be written",
    sqlite3.SQLITE_PERM: "it cannot be written; choose a path in a folder that can be written",
    sqlite3.SQLITE_FULL: "the disk is full; make room",
    sqlite3.SQLITE_IOERR: "the disk fails or is full; make room, or choose another path",
    sqlite3.SQLITE_BUSY: "another process holds it for too long; end that process, or choose another path",
}


def cache_key(identity: Mapping[str, Any], messages: Sequence[Message], sample: int = 0) -> bytes:
    """Return the key of an answer; ``sample`` numbers equal calls.

    Raises:
        TypeError, ValueError: the identity is no JSON.
    """
    return hashlib.sha256(_json([_KEY_VERSION, identity, list(messages), sample])).digest()


def long_cache_key(identity: Mapping[str, Any], messages: Sequence[Message], sample: int = 0) -> Steps[bytes]:
    """Return ``cache_key`` of long messages, in slices."""
    digest = hashlib.sha256(_json([_KEY_VERSION, identity])[:-1] + b",[")
    for number, message in enumerate(messages):
        digest.update(b",{" if number else b"{")
        for place, (name, value) in enumerate(sorted(message.items())):
            digest.update((b"," if place else b"") + _json(name) + b":")
            if not isinstance(value, str):
                digest.update(_json(value))
                continue
            digest.update(b'"')
            for piece in text_slices(value):
                digest.update(_json(piece)[1:-1])
                yield
            digest.update(b'"')
        digest.update(b"}")
    digest.update(b"]," + _json(sample) + b"]")
    return digest.digest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def is_kept(completion: Completion) -> bool:
    """Return whether an answer may be kept."""
    # Asking again after a refusal may bring an answer.
    return completion.finish_reason in _KEPT


# WAL mode, short transactions: a killed process loses only what it had not committed. A commit is in the
# kernel's memory, not yet on the disk: a power cut may lose the last ones, and never the file.
class ResponseCache:
    """Answers by ``cache_key``.

    Raises:
        CacheError: by every method, if the file cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        timeout: float = 5.0,
        own: bool = False,
        numbers_samples: bool = False,
    ) -> None:
        """Open nothing yet.

        Args:
            path: None is memory.
            timeout: seconds to wait for another process.
            own: skip answers of other users.
            numbers_samples: keep sampled answers, too, each for its place among the equal calls of a run.
                Equal calls of one run get different answers, and a run that starts again gets the same ones.
        """
        self._database = _CacheDatabase(path, timeout, own=own)
        self.numbers_samples = numbers_samples
        self._thread: ThreadPoolExecutor | None = None

    @property
    def location(self) -> str:
        """The resolved path, or a unique name in memory."""
        return self._database.location

    async def __aenter__(self) -> ResponseCache:
        if self._thread is not None:
            raise RuntimeError("this cache is open; another of the same path can be opened beside it")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="response-cache")
        try:
            await self._in_thread(self._database.open)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def get(self, key: bytes) -> Completion | None:
        """Return an answer with its original usage."""
        return (await self.get_many([key])).get(key)

    async def get_many(self, keys: Iterable[bytes]) -> dict[bytes, Completion]:
        """Return the known answers."""
        return await self._in_thread(self._database.read, list(keys))

    async def put(self, key: bytes, completion: Completion) -> None:
        """Keep an answer if ``is_kept``."""
        await self.put_many({key: completion})

    # An answer that is there stays.
    async def put_many(
        self, completions: Mapping[bytes, Completion], *, seconds: float | None = None
    ) -> None:
        """Keep answers in one transaction; ``seconds`` replace the wait for another process."""
        kept = {key: each for key, each in completions.items() if is_kept(each)}
        if kept:
            await self._in_thread(self._database.write, kept, seconds)

    async def check(self, key: bytes) -> None:
        """Check that another process would find an answer that was put; memory has none."""
        await self._in_thread(self._database.check, key)

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._thread is None:
            raise RuntimeError("the cache is not open: use it within `async with`")
        task = partial(work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, task)

    async def _end(self) -> None:
        if self._thread is not None:
            closed = self._thread.submit(self._database.close)
            self._thread.shutdown(wait=False)
            self._thread = None
            await asyncio.shield(asyncio.wrap_future(closed))


class _CacheDatabase:
    """The file, for the one thread that uses it."""

    def __init__(self, path: str | os.PathLike[str] | None, timeout: float, *, own: bool) -> None:
        self._path = path if path is None or isinstance(path, Path) else Path(path)
        self._timeout = timeout
        self._own = own
        self._seal = Seal("cache", None)
        self._connection: sqlite3.Connection | None = None
        # Its device and inode.
        self._file: tuple[int, int] | None = None
        self.location = f":memory:{next(_memories)}"

    def open(self) -> None:
        with self._errors():
            name = ":memory:"
            if self._path is not None:
                name = self.location = _make_private(self._path, own=self._own)
                self._seal = Seal.open("cache")
            self._connection = sqlite3.connect(name, timeout=self._timeout, isolation_level=None)
            self._check_or_create(self._connection)
            # Only now is the file known to be a cache.
            if self._own:
                _restrict_mode(name)
            self._enable_wal(self._connection)
            if self._path is not None:
                self._file = _file_id(name)

    def close(self) -> None:
        if self._connection is not None:
            with self._errors():
                self._connection.close()
            self._connection = None

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Completion]:
        assert self._connection is not None
        found: dict[bytes, Completion] = {}
        with self._errors():
            for key in keys:
                row = self._connection.execute(_SELECT_MARKED if self._own else _SELECT, (key,)).fetchone()
                if row is not None and (not self._own or self._is_own(key, *row)):
                    found[key] = self._decode(row[0])
        return found

    def write(self, completions: Mapping[bytes, Completion], seconds: float | None = None) -> None:
        assert self._connection is not None
        answers = [(key, _encode(completion)) for key, completion in completions.items()]
        # A file from elsewhere could hold answers that no model gave. A mark names the user who wrote one.
        marks = [(key, self._seal.mark(key, answer.encode())) for key, answer in answers]
        wait = int(1000 * (self._timeout if seconds is None else seconds))
        with self._errors(), self._connection:
            self._check_place()
            self._connection.execute(f"PRAGMA busy_timeout = {wait}")
            self._connection.execute("BEGIN IMMEDIATE")
            if self._own:
                self._remove_others(completions)
            self._connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", answers)
            # If the answer was there already, this mark is not used: it fits no other answer.
            self._connection.executemany("INSERT OR IGNORE INTO marks VALUES (?, ?)", marks)

    def check(self, key: bytes) -> None:
        if self._file is None:
            return
        with self._errors():
            self._check_place()
            # A new connection, since pages of this one may be in its memory alone.
            with closing(sqlite3.connect(self.location, timeout=self._timeout)) as other:
                if other.execute(_SELECT, (key,)).fetchone() is None:
                    raise CacheError(f"{self._path}: {_REMEDIES[sqlite3.SQLITE_CORRUPT]}")

    def _check_place(self) -> None:
        # SQLite would write to a file that was removed, and nobody could read it.
        if self._file is not None and _file_id(self.location) != self._file:
            raise CacheError(f"{self._path}: it was removed or replaced while it was in use; leave it there")

    def _remove_others(self, keys: Iterable[bytes]) -> None:
        assert self._connection is not None
        for key in keys:
            row = self._connection.execute(_SELECT_MARKED, (key,)).fetchone()
            if row is None or not self._is_own(key, *row):
                self._connection.execute("DELETE FROM answers WHERE key = ?", (key,))
                self._connection.execute("DELETE FROM marks WHERE key = ?", (key,))

    def _is_own(self, key: bytes, answer: object, mark: object) -> bool:
        return (
            isinstance(answer, str)
            and isinstance(mark, str)
            and self._seal.is_own(mark, key, answer.encode("utf-8", KEEP_SURROGATES))
        )

    def _decode(self, answer: Any) -> Completion:
        try:
            return msgspec.convert(json.loads(answer), Completion)
        except (TypeError, ValueError, msgspec.ValidationError) as error:
            raise CacheError(f"{self._path}: {_REMEDIES[sqlite3.SQLITE_CORRUPT]}") from error

    def _check_or_create(self, connection: sqlite3.Connection) -> None:
        with connection:
            # Two processes may create the file at once.
            connection.execute("BEGIN IMMEDIATE")
            (owner,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if (owner, version, tables) == (0, 0, 0):
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
                connection.execute("CREATE TABLE answers (key BLOB PRIMARY KEY, answer TEXT NOT NULL)")
            elif owner != _APPLICATION:
                raise CacheError(f"{self._path}: it is another program's database; choose another path")
            elif version != _SCHEMA_VERSION:
                raise CacheError(
                    f"{self._path}: its schema version is {version}, and this engine reads "
                    f"{_SCHEMA_VERSION}; choose another path"
                )
            # Views and triggers would run as the tables are read and written.
            (strange,) = connection.execute(_COUNT_STRANGE).fetchone()
            if strange:
                raise CacheError(f"{self._path}: {_REMEDIES[sqlite3.SQLITE_CORRUPT]}")
            # A separate table, so that version 0.1 can use the file too.
            connection.execute("CREATE TABLE IF NOT EXISTS marks (key BLOB PRIMARY KEY, mark TEXT NOT NULL)")

    def _enable_wal(self, connection: sqlite3.Connection) -> None:
        # With WAL this loses no consistency, and saves an fsync a transaction.
        connection.execute("PRAGMA synchronous = NORMAL")
        deadline = time.monotonic() + self._timeout
        # SQLite's busy timeout does not cover this pragma.
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            remedy = _REMEDIES.get(_code(error), str(error))
            raise CacheError(f"{self._path}: {remedy}") from error
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise CacheError(
                f"{self._path}: {error.strerror}{where}; choose another path, in a folder that can be written"
            ) from error


def _make_private(path: Path, *, own: bool) -> str:
    location = resolved(path)
    with PrivateFolder.open(ResolvedPath(location.parent), create=True) as folder:
        if not folder.exists(location.name):
            os.close(folder.update(location.name))
        elif own:
            folder.check_own(location.name)
        # SQLite would write to any file with the name of its journal.
        for suffix in _JOURNALS if own else ():
            folder.check_own(location.name + suffix)
    return str(location)


def _restrict_mode(location: str) -> None:
    with PrivateFolder.open(ResolvedPath(location).parent) as folder:
        os.close(folder.update(ResolvedPath(location).name))


def _file_id(location: str) -> tuple[int, int] | None:
    try:
        found = os.stat(location, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _encode(completion: Completion) -> str:
    # Retries and waiting belong to the call, not to the answer.
    return json.dumps(msgspec.to_builtins(replace(completion, retries=0, queued=0.0)))
