"""The folders below ``logs/runs``: make a new one, remove old ones, find runs that were killed."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ..private_files import PrivateFolder, ResolvedPath
from ..runlog.blobs import FOLDER as BLOBS
from ..runlog.contexts import SHARED, remove_unused
from .run_record import NAME, RunFacts, RunRecord

RUNS = Path("logs", "runs")
KEPT = 100
_MOST_TOLD = 3
_SLUG_CHARACTERS = 40

_FOLDER = re.compile(r"(\d{8}-\d{6})-[a-z0-9-]+", re.ASCII)
# What a run writes into its folder. A folder with anything else has files of the user's, and is kept.
_FILE = re.compile(
    rf"{re.escape(NAME)}|(supervisor|worker|repl)\.jsonl|context-[0-9a-f]+\.(txt|json|repr\.txt)"
    r"|answers(-\d+)?\.sqlite(-wal|-shm|-journal)?|\..+\.part",
    re.ASCII,
)
_BLOB = re.compile(r"[0-9a-f]{64}|\..+\.part", re.ASCII)
# The logs hold whole documents: they belong into no repository.
_GITIGNORE = b"# Made by supdist-engine: logs hold documents and answers.\n*\n"


class Killed(NamedTuple):
    """A run that was killed."""

    folder: ResolvedPath
    facts: RunFacts


def slug(question: str) -> str:
    """Return the first words of a question in plain ASCII, for a folder's name."""
    plain = unicodedata.normalize("NFKD", question[:1000]).encode("ascii", "ignore").decode().lower()
    words = re.findall(r"[a-z0-9]+", plain)
    # Whole words, if the first one leaves room. A question may have none.
    found = "-".join(words)[: _SLUG_CHARACTERS + 1] or "question"
    return found if len(found) <= _SLUG_CHARACTERS else found[:-1].rpartition("-")[0] or found[:-1]


@contextmanager
def new_run(question: str) -> Generator[PrivateFolder]:
    """Make and open a folder below ``logs/runs``, and remove the oldest ones; may raise ``OSError``."""
    with PrivateFolder.open(RUNS, create=True) as runs:
        if not runs.exists(SHARED):
            runs.below(SHARED, create=True).close()
        if not runs.exists(".gitignore"):
            with runs.replacing(".gitignore") as file:
                file.write(_GITIGNORE)
        # UTC, as in run ids: names sort by time, also when clocks change in autumn.
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{slug(question)}"
        with _make(runs, name) as folder:
            _remove_old(runs)
            try:
                yield folder
            finally:
                # Nothing was started: the question or an option was wrong.
                with suppress(OSError):
                    if not folder.exists("supervisor.jsonl"):
                        _remove(runs, folder.path.name)


def _make(runs: PrivateFolder, name: str) -> PrivateFolder:
    for suffix in itertools.chain([""], (f"-{number}" for number in itertools.count(2))):
        with suppress(FileExistsError):
            return runs.make(name + suffix)
    raise AssertionError


def killed_runs() -> list[Killed]:
    """Return the runs below ``logs/runs`` that were killed, the newest first, each only once ever."""
    found: list[Killed] = []
    with suppress(OSError), PrivateFolder.open(RUNS) as runs:
        for name in _names(runs)[: -KEPT - 1 : -1]:
            with suppress(OSError, ValueError), runs.below(name) as folder:
                if (facts := _told_facts(folder)) is not None:
                    found.append(Killed(folder.path, facts))
                    if len(found) == _MOST_TOLD:
                        break
    return found


def run_names() -> list[str]:
    """Return the names of the folders below ``logs/runs``, the newest last."""
    with suppress(OSError), PrivateFolder.open(RUNS) as runs:
        return _names(runs)
    return []


def _told_facts(folder: PrivateFolder) -> RunFacts | None:
    if not folder.is_own_file(NAME):
        return None
    with _locked(folder) as record:
        facts = record.read()
        if not facts.is_own or facts.has_ended:
            return None
        record.end()
        return facts


def _names(runs: PrivateFolder) -> list[str]:
    return sorted(name for name in runs.folders() if _FOLDER.fullmatch(name))


def _remove_old(runs: PrivateFolder) -> None:
    for name in _names(runs)[:-KEPT]:
        # What cannot be removed, is in use, or is not the engine's, stays.
        with suppress(OSError, ValueError):
            _remove(runs, name)
    with suppress(OSError), runs.below(SHARED) as shared:
        if shared.is_own:
            remove_unused(shared)


def _remove(runs: PrivateFolder, name: str) -> None:
    with runs.below(name) as folder:
        if not folder.is_own_file(NAME):
            return
        with _locked(folder) as record:
            names = [each for each in folder.names() if each != BLOBS]
            if not record.read().is_own or not all(map(_FILE.fullmatch, names)):
                return
            if folder.exists(BLOBS):
                with folder.below(BLOBS) as blobs:
                    if not all(map(_BLOB.fullmatch, blobs.names())):
                        return
                    for each in blobs.names():
                        blobs.remove(each)
                folder.remove_folder(BLOBS)
            # The record last: a later start goes on with what a kill leaves.
            for each in sorted(names, key=NAME.__eq__):
                folder.remove(each)
            runs.remove_folder(name)


@contextmanager
def _locked(folder: PrivateFolder) -> Generator[RunRecord]:
    record = RunRecord.lock(folder)
    try:
        yield record
    finally:
        record.close()
