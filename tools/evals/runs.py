"""Finding and reading the folders of runs, finished or not: what cannot be read is told and left out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from ...engine.private_files import is_there, open_file
from .records import CONFIG, EXAMPLES, RECORDS, Record, read_records


@dataclass(frozen=True, slots=True)
class Run:
    """A run as far as it has come.

    Attributes:
        name: the shortest path that tells it from the others.
        config: its settings; empty where they cannot be read.
        records: of the examples that have ended, in the order of the sample.
        begun: examples that were begun and have not ended: under way, or waiting to be resumed.
        notes: what there is to say about its folder.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    records: Sequence[Record]
    begun: int
    notes: Sequence[str] = ()

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What the settings say of versions, data and sample."""
        return table_in(self.config, "provenance")

    @property
    def planned(self) -> int | None:
        """Examples in its sample; None where that is not known."""
        sample: object = self.provenance.get("sample")
        return len(cast("list[object]", sample)) if isinstance(sample, list) else None


def table_in(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A table among settings that nobody has checked; empty where there is none."""
    value: object = config.get(key)
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def read_runs(places: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs in folders, each a run or above runs, and what there is to say of places that are neither."""
    folders: dict[Path, None] = {}
    notes: list[str] = []
    for place in places:
        found = [path.resolve() for path in _runs_below(place)]
        folders.update(dict.fromkeys(found))
        if not found:
            notes.append(f"{place}: {'no run in it' if place.is_dir() else 'no such folder'}")
    above = os.path.commonpath([folder.parent for folder in folders]) if folders else ""
    return [read_run(folder, os.path.relpath(folder, above)) for folder in folders], notes


def read_run(folder: Path, name: str) -> Run:
    """One run; never fails for what is in its files."""
    config, complaint = _read_config(folder / CONFIG)
    records, notes = _read_records(folder)
    ended = {record.example for record in records}
    begun = [path for path in _folders_in(folder / EXAMPLES) if path.name not in ended]
    return Run(folder, name, config, records, len(begun), [*complaint, *notes])


def _runs_below(place: Path) -> Iterator[Path]:
    # A run's own folders hold no runs, and are not walked: they can be many.
    for folder, below, files in os.walk(place):
        if CONFIG in files or RECORDS in files:
            below.clear()
            yield Path(folder)
        below.sort()


def _read_config(path: Path) -> tuple[Mapping[str, Any], list[str]]:
    try:
        with open_file(path) as file:
            value: object = json.loads(file.read())
    except (OSError, ValueError, RecursionError) as error:
        return {}, [f"{path.name} cannot be read: {error}"]
    if not isinstance(value, dict):
        return {}, [f"{path.name} holds no settings"]
    return cast("dict[str, Any]", value), []


def _read_records(folder: Path) -> tuple[list[Record], list[str]]:
    try:
        records = read_records(folder)
        damaged = sum(_is_damaged(line) for line in _whole_lines(folder / RECORDS))
    except OSError as error:
        return [], [f"{RECORDS} cannot be read: {error}"]
    return records, [f"lines of {RECORDS} that are no records: {damaged}"] if damaged else []


def _whole_lines(path: Path) -> Iterator[str]:
    if is_there(path):
        with open_file(path) as lines:
            yield from (
                line.decode("utf-8", "replace")
                for line in lines
                if line.endswith(b"\n") and not line.isspace()
            )


def _is_damaged(line: str) -> bool:
    try:
        Record.model_validate_json(line)
    except ValidationError:
        return True
    return False


def _folders_in(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []
