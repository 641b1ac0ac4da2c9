"""Finds and reads the folders of runs, finished or not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from ...engine.private_files import read_file, resolved
from .records import CONFIG, EXAMPLES, MAX_CONFIG_BYTES, RECORDS, Record, read_records_and_damage

S = TypeVar("S", bound=msgspec.Struct)


class ModelSettings(msgspec.Struct, frozen=True):
    """A model in the settings of a run."""

    model: str = ""
    handler: str = ""


class Provenance(msgspec.Struct, frozen=True):
    """Data and sample of a run."""

    data_hash: str = ""
    sample: list[Any] | None = None


class Settings(msgspec.Struct, frozen=True):
    """The settings that the figures need."""

    task: str = ""
    # Version 0.1 named it arm.
    strategy: str = ""
    arm: str = ""
    seed: int | None = None
    supervisor: ModelSettings = ModelSettings()
    worker: ModelSettings = ModelSettings()
    judge: ModelSettings = ModelSettings()
    provenance: Provenance = Provenance()


@dataclass(frozen=True, slots=True)
class Run:
    """A run, finished or not."""

    folder: Path
    # The shortest path that is unique among the runs.
    name: str
    settings: Settings
    records: Sequence[Record]
    # Examples that have no record: they run, or wait to be resumed.
    begun: int
    notes: Sequence[str] = ()

    @property
    def planned(self) -> int | None:
        """Examples in its sample; None if unknown."""
        sample = self.settings.provenance.sample
        return None if sample is None else len(sample)


def read_runs(places: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs in or below some folders, and notes about folders without a run."""
    folders: dict[Path, None] = {}
    notes: list[str] = []
    for place in places:
        found = [path.resolve() for path in _runs_below(place)]
        folders.update(dict.fromkeys(found))
        if not found:
            notes.append(f"{place}: {_why_none(place)}")
    above = os.path.commonpath([folder.parent for folder in folders]) if folders else ""
    return [read_run(folder, os.path.relpath(folder, above)) for folder in folders], notes


def read_run(folder: Path, name: str) -> Run:
    """Read one run. No content of its files makes this fail."""
    settings, problems = _read_settings(folder / CONFIG)
    records, notes = _read_records(folder)
    ended = {record.example for record in records}
    begun = [path for path in _folders_in(folder / EXAMPLES) if path.name not in ended]
    return Run(folder, name, settings, records, len(begun), [*problems, *notes])


def _why_none(place: Path) -> str:
    if place.is_dir():
        return "no run in it"
    return "it is a file, not the folder of a run" if place.exists() else "no such folder"


def _runs_below(place: Path) -> Iterator[Path]:
    # A run can have many folders, and none of them holds a run.
    for folder, below, files in os.walk(place):
        if CONFIG in files or RECORDS in files:
            below.clear()
            yield Path(folder)
        below.sort()


def _read_settings(path: Path) -> tuple[Settings, list[str]]:
    try:
        value: object = json.loads(read_file(resolved(path.parent) / path.name, MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        return Settings(), [f"{path.name} cannot be read: {error}"]
    if not isinstance(value, dict):
        return Settings(), [f"{path.name} holds no settings"]
    return _convert(cast("dict[str, object]", value), Settings), []


def _convert(value: object, kind: type[S]) -> S:
    # Field by field: a value that is missing or of a wrong type becomes its default, and spoils no other.
    given = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    values: dict[str, object] = {}
    for field in msgspec.structs.fields(kind):
        if field.name not in given:
            continue
        if isinstance(field.default, msgspec.Struct):
            values[field.name] = _convert(given[field.name], type(field.default))
            continue
        try:
            values[field.name] = msgspec.convert(given[field.name], field.type)
        except msgspec.ValidationError:
            continue
    return kind(**values)


def _read_records(folder: Path) -> tuple[list[Record], list[str]]:
    try:
        records, damaged = read_records_and_damage(folder)
    except OSError as error:
        return [], [f"{RECORDS} cannot be read: {error}"]
    return records, [f"lines of {RECORDS} that are no records: {damaged}"] if damaged else []


def _folders_in(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []
