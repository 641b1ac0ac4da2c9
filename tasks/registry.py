"""Finds tasks by name, built in or of other packages."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, cast

from .base import Task, TaskDataError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

# The group of entry points under which another package registers its tasks.
GROUP = "supdist_engine.tasks"

# Names, not classes: listing tasks must import none of them.
_BUILT_IN = {
    "jsonl": "jsonl:Jsonl",
    "needle": "needle:Needle",
    "oolong": "oolong:Oolong",
    "pairs": "pairs:Pairs",
    "qasper": "qasper:Qasper",
}


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a task, for help texts."""

    name: str
    # "int", "text", "yes|no", "a|b|c".
    type: str
    # JSON; None if the option is required.
    default: str | None
    help: str


@dataclass(frozen=True, slots=True)
class Description:
    """A task's summary (one line) and options."""

    name: str
    summary: str
    options: tuple[Option, ...]


def names() -> list[str]:
    """Return the names of all tasks, sorted."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def create(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """Return a task with these options; texts are converted to their types.

    Raises:
        TaskDataError: no such task or option, or a value does not fit.
    """
    from pydantic import ValidationError

    adapter = _adapter(name)
    given = dict(options or {})
    _check_names(name, given, _schema(adapter))
    try:
        return adapter.validate_python(given)
    except ValidationError as error:
        schema = _schema(adapter)
        problems = [
            _missing(each["loc"], schema) if each["type"] == "missing" else _problem(each["loc"], each["msg"])
            for each in error.errors()
        ]
        raise TaskDataError(f"task {name}: " + "; ".join(problems)) from None


def describe(name: str) -> Description:
    """Return a task's summary and options.

    Raises:
        TaskDataError: there is no such task.
    """
    adapter = _adapter(name)
    schema = _schema(adapter)
    properties = cast("dict[str, dict[str, Any]]", schema.get("properties", {}))
    required = cast("Sequence[str]", schema.get("required", ()))
    options = tuple(
        Option(
            name=key,
            type=_type(field, schema),
            default=None if key in required else json.dumps(field.get("default")),
            help=field.get("description", ""),
        )
        for key, field in properties.items()
    )
    summary = (schema.get("description") or "").strip().splitlines()
    return Description(name, summary[0] if summary else "", options)


def _adapter(name: str) -> TypeAdapter[Task]:
    from pydantic import TypeAdapter

    return TypeAdapter(_load(name))


def _load(name: str) -> type[Task]:
    # Built-in names come first, so that no package can replace them.
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return getattr(import_module(f".{module}", __package__), attribute)
    points = list(entry_points(group=GROUP, name=name))
    if not points:
        raise TaskDataError(f"there is no task {name!r}; {_nearest(name, names())}")
    if len(points) > 1:
        packages = " and ".join(sorted(_package(point) for point in points))
        raise TaskDataError(
            f"task {name!r} is registered more than once, by {packages}; uninstall all but one"
        )
    return _load_other(points[0])


def _load_other(point: EntryPoint) -> type[Task]:
    from pydantic import BaseModel

    try:
        found: object = point.load()
    # Another package's module can raise anything.
    except Exception as error:
        raise TaskDataError(
            f"task {point.name!r} of {_package(point)} cannot be imported: {error!r}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise TaskDataError(f"task {point.name!r} of {_package(point)}: {point.value} is no subclass of Task")
    if not (issubclass(found, BaseModel) or is_dataclass(found)):
        raise TaskDataError(
            f"task {point.name!r} of {_package(point)}: {point.value} is"
            " neither a pydantic model nor a dataclass"
        )
    return found


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


def _check_names(name: str, given: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    known = list(schema.get("properties", {}))
    for key in given:
        if key not in known:
            raise TaskDataError(f"task {name} has no option {key!r}; {_nearest(key, known)}")


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known) or 'none'}"


def _schema(adapter: TypeAdapter[Task]) -> dict[str, Any]:
    return adapter.json_schema()


def _missing(where: tuple[int | str, ...], schema: Mapping[str, Any]) -> str:
    key = ".".join(map(str, where))
    field: Mapping[str, Any] = schema.get("properties", {}).get(key, {})
    value = "FILE" if field.get("format") == "path" else "VALUE"
    return f"{key} is missing; give it, as -T {key}={value}"


def _problem(where: tuple[int | str, ...], message: str) -> str:
    return ": ".join(
        [".".join(map(str, where)), message.removeprefix("Value error, ")] if where else [message]
    )


_TYPES = {"integer": "int", "number": "number", "string": "text", "boolean": "yes|no", "null": "none"}


def _type(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if "$ref" in field:
        return _type(schema["$defs"][field["$ref"].rpartition("/")[2]], schema)
    if "enum" in field or "const" in field:
        return "|".join(map(str, field.get("enum", [field.get("const")])))
    if "anyOf" in field:
        return "|".join(_type(each, schema) for each in field["anyOf"] if each.get("type") != "null")
    if field.get("format") == "path":
        return "path"
    return _TYPES.get(field.get("type", ""), "JSON")
