"""Grids: all combinations of lists of settings. tools/README.md describes the file."""

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
from ...handlers.text_files import decode_text
from ...tasks.base import TaskDataError
from ...tasks.registry import create
from .config import FREE, ExperimentConfig, resolve
from .runs import read_run

_ROLES: tuple[Role, ...] = get_args(Role)
_TABLES = ("task_options", "limits", "sandbox")
# A model that a strategy does not use makes no combinations.
_UNUSED: Mapping[str, Sequence[str]] = {
    "direct": ("worker",),
    "no-worker": ("worker",),
    "builtin": ("supervisor", "worker"),
}
_SLUG_CHARACTERS = 40
_MAX_FILE_BYTES = 16 << 20
_MAX_COMBINATIONS = 10_000

# Returns the specification of a model that is only named.
FindModel = Callable[[Role, str], ModelSpec]
# A combined setting: its name, or the name of its table and its name.
Axis = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Combination:
    """One experiment: its settings, in which a model may be a name, and its folder."""

    settings: Mapping[str, Any]
    folder: Path

    def config(self, find_model: FindModel) -> ExperimentConfig:
        """Return the checked settings.

        Raises:
            TaskError: a setting is wrong, or a model has no endpoint.
        """
        return _config(self.settings, find_model, f"{self.folder.name}: the settings are wrong")

    @property
    def is_finished(self) -> bool:
        """Whether all of its examples have ended."""
        run = read_run(self.folder, self.folder.name)
        return run.planned is not None and len(run.records) >= run.planned


def read_grid(file: Path, out: Path | None = None, **overrides: object) -> list[Combination]:
    """Return the checked combinations of a file; ``overrides`` replace its settings.

    Raises:
        TaskError: the file is unreadable or wrong.
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
    if (count := math.prod(map(len, axes.values()))) > _MAX_COMBINATIONS:
        raise TaskError(f"{file} has {count:,} combinations; the limit is {_MAX_COMBINATIONS:,}")
    folder = out or Path(place or Path("logs", file.stem))
    found: dict[str, Combination] = {}
    # Every combination is checked before the first one runs.
    for values in itertools.product(*axes.values()):
        settings = _combined(shared, dict(zip(axes, values, strict=True)))
        config = _config(settings, _placeholder, f"{file}: {_axis_values(axes, values) or 'base'}")
        digest = _digest(config)
        found.setdefault(digest, Combination(settings, _folder(folder, config, axes, digest)))
    return list(found.values())


def named_folder(file: Path) -> Path | None:
    """Return the ``out`` of a grid file; None if it has none.

    Raises:
        TaskError: the file cannot be read.
    """
    place = _read(file).get("out")
    return Path(place) if isinstance(place, str) else None


def check(
    combinations: Iterable[Combination], find_model: FindModel, environ: Mapping[str, str] | None = None
) -> list[ExperimentConfig]:
    """Return their settings with resolved models. No data is read.

    Raises:
        TaskError: one of them cannot run.
    """
    variables = os.environ if environ is None else environ
    configs = [resolve(each.config(find_model), variables) for each in combinations]
    for config in configs:
        try:
            create(config.task, config.task_options)
        except TaskDataError as error:
            raise TaskError(str(error)) from error
    return configs


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a combination ended: ``failed`` examples, or the ``error`` that stopped it."""

    folder: Path
    failed: int = 0
    error: str = ""
    cause: Exception | None = None


def run_grid(
    experiments: Iterable[tuple[ExperimentConfig, Path]], run: Callable[[ExperimentConfig, Path], int]
) -> Iterator[Outcome]:
    """Run experiments one after another. ``run`` returns its failed examples."""
    for config, folder in experiments:
        try:
            yield Outcome(folder, run(config, folder))
        except Exception as error:  # any error of one, so that the others run
            yield Outcome(folder, error=f"{type(error).__name__}: {error}", cause=error)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(decode_text(read_file(file, _MAX_FILE_BYTES))[0])
    except (OSError, ValueError, RecursionError) as error:
        raise TaskError(f"cannot read the grid {file}: {error}") from error


def _current_names(file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    # Version 0.1 named the strategy `arm`. The order stays, since it is that of the combinations.
    if {"arm", "strategy"} <= settings.keys():
        raise TaskError(f"{file}: arm is the old name of strategy: give one of them")
    return {"strategy" if name == "arm" else name: value for name, value in settings.items()}


def _axes(file: Path, content: Mapping[str, Any]) -> Iterator[tuple[Axis, Sequence[Any]]]:
    for name, values in content.items():
        if name not in ExperimentConfig.model_fields:
            # Checked like a setting, so that the error names the closest setting.
            checked(ExperimentConfig, {name: values}, f"{file} combines what is no setting")
        if name in _TABLES and isinstance(values, dict):
            for key, inner in cast("dict[str, Any]", values).items():
                yield (name, key), _values(file, f"{name}.{key}", inner)
        else:
            yield (name,), _values(file, name, values)


def _values(file: Path, name: str, values: object) -> Sequence[Any]:
    if not isinstance(values, list) or not values:
        raise TaskError(
            f"{file}: {name}: a combined setting needs a list of at least one value; "
            "put shared settings into [base]"
        )
    return cast("list[Any]", values)


def _check_base(file: Path, base: Mapping[str, Any], axes: Mapping[Axis, Sequence[Any]]) -> None:
    for name, value in base.items():
        # No setting is a list: it was meant to be combined.
        if isinstance(value, list):
            raise TaskError(f"{file}: base.{name}: a list of values to combine belongs above [base]")
    for axis in axes:
        table = base if len(axis) == 1 else base.get(axis[0], {})
        if isinstance(table, dict) and axis[-1] in table:
            raise TaskError(f"{file}: {'.'.join(axis)}: is in [base] and is combined; choose one")


def _combined(shared: Mapping[str, Any], values: Mapping[Axis, Any]) -> dict[str, Any]:
    settings = {**shared, **{axis[0]: value for axis, value in values.items() if len(axis) == 1}}
    for axis, value in values.items():
        if len(axis) == 2:
            table, key = axis
            settings[table] = {**settings.get(table, {}), key: value}
    unused = _UNUSED.get(str(settings.get("strategy")), ())
    return {name: value for name, value in settings.items() if name not in unused}


def _config(settings: Mapping[str, Any], find_model: FindModel, complaint: str) -> ExperimentConfig:
    whole = dict(settings)
    for role in (*_ROLES, "judge"):
        if isinstance(name := whole.get(role), str) and (role, name) != ("judge", "none"):
            whole[role] = find_model(cast("Role", role), name).model_dump(mode="json")
    return checked(ExperimentConfig, whole, complaint)


def _placeholder(role: Role, name: str) -> ModelSpec:
    # For a digest, the endpoint of a model does not matter.
    del role
    return BuiltinSpec(handler="builtin") if name == "builtin" else OpenAISpec(handler="openai", model=name)


def _digest(config: ExperimentConfig) -> str:
    # Without defaults: a default that is spelled out, or a new setting, changes no name.
    settings = config.model_dump(mode="json", exclude_defaults=True, exclude=set(FREE))
    # Under its old name, so that folders of version 0.1 are found.
    if "strategy" in settings:
        settings["arm"] = settings.pop("strategy")
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _folder(folder: Path, config: ExperimentConfig, axes: Mapping[Axis, Sequence[Any]], digest: str) -> Path:
    # The digest alone identifies it: the words before it depend on what else the grid combines.
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
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:_SLUG_CHARACTERS] or "x"


def _axis_values(axes: Mapping[Axis, Sequence[Any]], values: Sequence[Any]) -> str:
    return ", ".join(f"{'.'.join(axis)}={value!r}" for axis, value in zip(axes, values, strict=True))
