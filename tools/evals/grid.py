"""Grids: all combinations of some settings, an experiment each, in a folder that has the same name every time.

A grid file, in TOML; what is combined stands above ``[base]``, for a TOML table lasts until the next one::

    out = "logs/my_grid"            # a folder for the folders; logs/<the file's name> by default
    supervisor = ["maker/large", "builtin"]      # names, at the environment's endpoint
    strategy = ["supervisor", "direct"]
    seed = [1, 2]

    [base]                          # settings that all share, as in `eval --config`
    task = "needle"
    n = 20

    [[worker]]                      # or specifications, as in a task file
    handler = "openai"
    model = "maker/small"
    base_url = "http://127.0.0.1:8000/v1"

    [task_options]                  # options of the task, of limits and sandbox are combined, too
    length = [10_000, 100_000]

A model that a strategy does not use makes no combination of its own: `direct` and `no-worker` run once for each supervisor,
`builtin` once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from ...engine.errors import TaskError
from ...engine.model_specs import BuiltinSpec, ModelSpec, OpenAISpec, Role
from ...engine.private_files import read_file
from ...engine.taskfile import checked
from ...tasks.base import TaskDataError
from ...tasks.registry import create
from .config import FREE, ExperimentConfig, resolve
from .runs import read_run

_ROLES: tuple[Role, ...] = get_args(Role)
_TABLES = ("task_options", "limits", "sandbox")
_UNUSED: Mapping[str, Sequence[str]] = {
    "direct": ("worker",),
    "no-worker": ("worker",),
    "builtin": ("supervisor", "worker"),
}
_SLUG = 40
_MOST_BYTES = 16 << 20
_MOST_COMBINATIONS = 10_000

ByName = Callable[[Role, str], ModelSpec]
"""What gives a model that is only named."""


@dataclass(frozen=True, slots=True)
class Combination:
    """One experiment of a grid.

    Attributes:
        settings: as they stand in the file; models may be names.
        folder: where it is, or will be.
    """

    settings: Mapping[str, Any]
    folder: Path

    def config(self, by_name: ByName) -> ExperimentConfig:
        """The settings, with the models that are only named.

        Raises:
            TaskError: a setting is wrong, or a model cannot be had.
        """
        return _config(self.settings, by_name, f"{self.folder.name}: the settings are wrong")

    @property
    def is_finished(self) -> bool:
        """Whether all of its examples have ended."""
        run = read_run(self.folder, self.folder.name)
        return run.planned is not None and len(run.records) >= run.planned


def read_grid(file: Path, out: Path | None = None, **overrides: object) -> list[Combination]:
    """The combinations of a file, checked, in the order in which the file names things; equal ones once.

    Args:
        file: the grid, in TOML.
        out: the folder for the folders, whatever the file says.
        overrides: settings that replace those of ``[base]``.

    Raises:
        TaskError: the file cannot be read, or something in it is wrong.
    """
    content = _current_names(file, _read(file))
    place = content.pop("out", None)
    if place is not None and not isinstance(place, str):
        raise TaskError(f"{file}: out: must be the path of a folder")
    base = content.pop("base", {})
    if not isinstance(base, dict):
        raise TaskError(f"{file}: base: must be a table of settings")
    base = _current_names(file, cast("dict[str, Any]", base))
    axes = dict(_axes(file, content))
    shared = {**base, **overrides}
    _check_base(file, shared, axes)
    if (count := math.prod(map(len, axes.values()))) > _MOST_COMBINATIONS:
        raise TaskError(f"{file} has {count:,} combinations; at most {_MOST_COMBINATIONS:,} can be had")
    folder = out or Path(place or Path("logs", file.stem))
    found: dict[str, Combination] = {}
    for values in itertools.product(*axes.values()):
        settings = _combined(shared, dict(zip(axes, values, strict=True)))
        config = _config(settings, _placeholder, f"{file}: {_said(axes, values) or 'base'}")
        digest = _digest(config)
        found.setdefault(digest, Combination(settings, _place(folder, config, axes, digest)))
    return list(found.values())


def named_folder(file: Path) -> Path | None:
    """Return the folder for the folders that a grid file names; None where it names none.

    Raises:
        TaskError: the file cannot be read.
    """
    place = _read(file).get("out")
    return Path(place) if isinstance(place, str) else None


def check(
    combinations: Iterable[Combination], by_name: ByName, environ: Mapping[str, str] | None = None
) -> list[ExperimentConfig]:
    """Their settings, with models and tasks that can be had; nothing is run, no data are read.

    Raises:
        TaskError: one of them could not be run as things are.
    """
    variables = os.environ if environ is None else environ
    configs = [resolve(each.config(by_name), variables) for each in combinations]
    for config in configs:
        try:
            create(config.task, config.task_options)
        except TaskDataError as error:
            raise TaskError(str(error)) from error
    return configs


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a combination went: so many of its examples failed, or an ``error`` stopped it."""

    folder: Path
    failed: int = 0
    error: str = ""


def run_grid(
    experiments: Iterable[tuple[ExperimentConfig, Path]], run: Callable[[ExperimentConfig, Path], int]
) -> Iterator[Outcome]:
    """Run experiments one after another; one that fails stops no other.

    Args:
        experiments: settings and folder of each.
        run: runs one to its end, going on with what is in the folder; how many examples failed.
    """
    for config, folder in experiments:
        try:
            yield Outcome(folder, run(config, folder))
        except Exception as error:  # whatever befell one, the others are worth having
            yield Outcome(folder, error=f"{type(error).__name__}: {error}")


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_file(file, _MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TaskError(f"cannot read the grid {file}: {error}") from error


def _current_names(file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in their order, with ``arm`` of version 0.1 renamed to ``strategy``."""
    if {"arm", "strategy"} <= settings.keys():
        raise TaskError(f"{file}: arm is the old name of strategy: give one of them")
    return {"strategy" if name == "arm" else name: value for name, value in settings.items()}


Axis = tuple[str, ...]
"""Where a setting is: its name, within a table the table's name before it."""


def _axes(file: Path, content: Mapping[str, Any]) -> Iterator[tuple[Axis, Sequence[Any]]]:
    for name, values in content.items():
        if name not in ExperimentConfig.model_fields:
            # Checked as a setting is, for the hint of what may have been meant.
            checked(ExperimentConfig, {name: values}, f"{file} combines what is no setting")
        if name in _TABLES and isinstance(values, dict):
            for key, inner in cast("dict[str, Any]", values).items():
                yield (name, key), _values(file, f"{name}.{key}", inner)
        else:
            yield (name,), _values(file, name, values)


def _values(file: Path, name: str, values: object) -> Sequence[Any]:
    if not isinstance(values, list) or not values:
        raise TaskError(
            f"{file}: {name}: what is combined is a list of at least one; what all share stands in [base]"
        )
    return cast("list[Any]", values)


def _check_base(file: Path, base: Mapping[str, Any], axes: Mapping[Axis, Sequence[Any]]) -> None:
    for name, value in base.items():
        if isinstance(value, list):
            raise TaskError(f"{file}: base.{name}: a list of what is combined stands above [base]")
    for axis in axes:
        table = base if len(axis) == 1 else base.get(axis[0], {})
        if isinstance(table, dict) and axis[-1] in table:
            raise TaskError(f"{file}: {'.'.join(axis)}: stands in [base] and is combined; choose one")


def _combined(shared: Mapping[str, Any], values: Mapping[Axis, Any]) -> dict[str, Any]:
    settings = {**shared, **{axis[0]: value for axis, value in values.items() if len(axis) == 1}}
    for axis, value in values.items():
        if len(axis) == 2:
            table, key = axis
            settings[table] = {**settings.get(table, {}), key: value}
    unused = _UNUSED.get(str(settings.get("strategy")), ())
    return {name: value for name, value in settings.items() if name not in unused}


def _config(settings: Mapping[str, Any], by_name: ByName, complaint: str) -> ExperimentConfig:
    whole = dict(settings)
    for role in (*_ROLES, "judge"):
        if isinstance(name := whole.get(role), str) and (role, name) != ("judge", "none"):
            whole[role] = by_name(cast("Role", role), name).model_dump(mode="json")
    return checked(ExperimentConfig, whole, complaint)


def _placeholder(role: Role, name: str) -> ModelSpec:
    """A model whose endpoint does not matter."""
    del role
    return BuiltinSpec(handler="builtin") if name == "builtin" else OpenAISpec(handler="openai", model=name)


def _digest(config: ExperimentConfig) -> str:
    """Of what decides the results. Defaults are left out: one that is spelt out, or a new one, changes no name."""
    settings = config.model_dump(mode="json", exclude_defaults=True, exclude=set(FREE))
    # Under its old name, so that folders of version 0.1 are found again.
    if "strategy" in settings:
        settings["arm"] = settings.pop("strategy")
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _place(folder: Path, config: ExperimentConfig, axes: Mapping[Axis, Sequence[Any]], digest: str) -> Path:
    """The folder that bears the digest already, whatever else the grid combined then; else a new one."""
    before = sorted(folder.glob(f"*_{digest}"))
    return before[0] if before else folder / "_".join([*_words(config, axes), digest])


def _words(config: ExperimentConfig, axes: Mapping[Axis, Sequence[Any]]) -> Iterator[str]:
    supervisor, worker, judge = config.models
    for model in (supervisor, worker, judge if ("judge",) in axes else ""):
        if model:
            yield _slug(model.rstrip("/").rsplit("/", 1)[-1])
    yield config.strategy
    settings = config.model_dump(mode="json")
    for axis in axes:
        if axis[0] not in (*_ROLES, "judge", "strategy"):
            value: Any = settings
            for key in axis:
                value = value[key]
            yield _slug(f"{axis[-1]}-{value}")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:_SLUG] or "x"


def _said(axes: Mapping[Axis, Sequence[Any]], values: Sequence[Any]) -> str:
    return ", ".join(f"{'.'.join(axis)}={value!r}" for axis, value in zip(axes, values, strict=True))
