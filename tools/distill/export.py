"""Writes data sets for distillation from the folders of evals.

::

    OUT/
    ├── train.jsonl        lines (``formats.py``)
    ├── validation.jsonl   lines of other documents
    ├── sources.jsonl      run, score, models and hash of each line
    ├── .mark              the user's seal of sources.jsonl
    ├── card.json          counts, filters, sources, hashes
    └── README.md          the same for people
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from ...engine.errors import TaskError
from ...engine.private_files import digest_file, read_file, resolved
from ...engine.trust.seals import Seal
from .conversations import NoConversation
from .dataset_card import CARD, README, Card, SplitFacts, facts_of
from .formats import REPEATED, Line, as_text, pairs, run_lines, sha256_of, turn_lines, worker_lines
from .options import ExportOptions
from .selection import Run, Selection, select
from .split import SIDES, Side, documents, split

SOURCES, MARK = "sources.jsonl", ".mark"


def seal() -> Seal:
    """Return the seal of this user's exports."""
    return Seal.open("export")


def is_own(folder: Path) -> bool:
    """Return whether this user made the export."""
    try:
        return seal().is_own(read_file(resolved(folder) / MARK), digest_file(folder / SOURCES).encode())
    except OSError:
        return False


def export(
    folders: Iterable[Path],
    out: Path,
    options: ExportOptions,
    *,
    force: bool = False,
    report: Callable[[str], None] | None = None,
) -> Card:
    """Write a data set, whole or not at all.

    Args:
        folders: folders of evals, or folders above.
        force: replace an export.
        report: receives each problem of a log.

    Raises:
        TaskError: a folder holds no eval, ``out`` exists, or a file is unreadable or unwritable.
    """
    try:
        with appearing(out, force=force) as folder:
            return _write(select(folders, options.filters, report), folder, out, options)
    except OSError as error:
        raise TaskError(f"{error.filename or out}: {error.strerror or error}") from error


def _write(selection: Selection, folder: Path, out: Path, options: ExportOptions) -> Card:
    left_out = Counter[str]()
    spool = folder / "spool.jsonl"
    mentions = list(
        _write_spool(_without_repeats(_lines(selection, options, left_out), left_out), spool, out.resolve())
    )
    one_name = documents(mentions)
    names = [one_name[mention[0]] for mention in mentions]
    sides = split(names, options.validation, options.seed)
    splits = _write_splits(spool, [(sides[name], name) for name in names], folder)
    spool.unlink()
    (folder / MARK).write_text(seal().mark(digest_file(folder / SOURCES).encode()))
    card = facts_of(selection, out, options, left_out, splits)
    (folder / CARD).write_text(card.as_json(), encoding="ascii")
    (folder / README).write_text(card.as_markdown(), encoding="utf-8")
    return card


def _write_spool(lines: Iterable[Line], spool: Path, out: Path) -> Iterator[list[str]]:
    # The side of a line is known when all documents are, and the lines may be more than memory holds.
    def relative(path: Path) -> str:
        return os.path.relpath(path, out)

    with open(spool, "w", encoding="ascii") as file:
        for line in lines:
            file.write(json.dumps([line.content, line.source], default=relative) + "\n")
            yield line.document


def _write_splits(spool: Path, places: Sequence[tuple[Side, str]], folder: Path) -> dict[Side, SplitFacts]:
    hashes: dict[Side, Any] = {}
    counts = Counter[Side]()
    with ExitStack() as stack:
        files: dict[Side, TextIO] = {}
        sources = stack.enter_context(open(folder / SOURCES, "w", encoding="ascii"))
        for (side, _), line in zip(places, stack.enter_context(open(spool, encoding="ascii")), strict=True):
            # Opened for its first line, because readers refuse empty files.
            if side not in files:
                files[side] = stack.enter_context(open(folder / f"{side}.jsonl", "w", encoding="ascii"))
                hashes[side] = hashlib.sha256()
            content, source = json.loads(line)
            text = as_text(content)
            files[side].write(text)
            hashes[side].update(text.encode())
            counts[side] += 1
            place = {"split": side, "line": counts[side], "sha256": sha256_of(content)}
            sources.write(json.dumps({**place, **source}) + "\n")
    of_side = Counter(side for side, _ in set(places))
    return {
        side: SplitFacts(counts[side], of_side[side], hashes[side].hexdigest())
        for side in SIDES
        if side in files
    }


def _lines(selection: Selection, options: ExportOptions, left_out: Counter[str]) -> Iterator[Line]:
    for runs in _groups(selection, options):
        try:
            yield from _lines_of(runs, options, left_out)
        except NoConversation as error:
            left_out[f"the rest of a log that is {error.reason}"] += 1


def _groups(selection: Selection, options: ExportOptions) -> Iterator[list[Run]]:
    # A pair is of one question; other lines are of one run.
    if options.format == "preference":
        runs = sorted(selection.runs, key=lambda run: run.question)
        return (list(group) for _, group in itertools.groupby(runs, key=lambda run: run.question))
    return ([run] for run in selection.runs if not run.refused)


def _lines_of(runs: list[Run], options: ExportOptions, left_out: Counter[str]) -> Iterator[Line]:
    if options.format == "preference":
        return pairs(runs, options.max_pairs, left_out)
    (run,) = runs
    if options.role == "worker":
        return worker_lines(run, left_out)
    lines = turn_lines if options.per == "turn" else run_lines
    return lines(run, run.read(), left_out)


def _without_repeats(lines: Iterable[Line], left_out: Counter[str]) -> Iterator[Line]:
    # Lines that differ only in seconds count as equal.
    seen = set[str]()
    for line in lines:
        if line.same in seen:
            left_out[REPEATED] += 1
            continue
        seen.add(line.same)
        yield line


def _check_free(out: Path, *, force: bool) -> None:
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        raise TaskError(f"{out} already exists; name another --out, or add --force to replace it")
    if out.is_symlink() or not (out / CARD).is_file():
        raise TaskError(f"{out} is no export ({CARD} is missing) and is not replaced; name another --out")


@contextmanager
def appearing(out: Path, *, force: bool = False) -> Generator[Path]:
    """Yield a new folder that gets the name ``out`` if the block succeeds.

    Raises:
        TaskError: ``out`` exists and is no export, or ``force`` is false.
    """
    _check_free(out, force=force)
    out.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    part, old = (out.with_name(f".{out.name}.{mark}.{kind}") for kind in ("part", "old"))
    part.mkdir()
    try:
        yield part
        # Again: another process may have been faster.
        _check_free(out, force=force)
        # Moved and not removed, so that a failure can bring it back.
        if out.exists():
            out.rename(old)
        try:
            part.rename(out)
        except BaseException:
            if old.exists():
                old.rename(out)
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
