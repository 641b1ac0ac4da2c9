"""Write what ``ask`` was given as a task file, which ``run`` takes."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from ...handlers.openai_options import without_secrets
from ...sandbox_image.text import printable
from ..errors import TaskError
from ..model_presets import BUILTIN
from ..model_specs import ModelSpec, Role
from ..taskfile import TaskFile, parse_as
from ..trust import Bound, Environment
from .run_flags import RunFlags
from .work import Work

STDIN = "-"


def save(path: Path, work: Work, files: Sequence[str], environment: Environment) -> None:
    """Write a new file, and say on stderr how to run it.

    Raises:
        TaskError: it exists, cannot be written, or would hold a secret.
    """
    if path.suffix.lower() != ".json":
        raise TaskError(f"--save {path}: a task file is written as JSON; name it {path.stem or 'task'}.json")
    task = _task(path, work, files)
    text = json.dumps(task, indent=2, ensure_ascii=False) + "\n"
    # As `run` reads it: a file that it would refuse is not written.
    saved = parse_as(TaskFile, text, path, "task")
    _write(path, text)
    # A task file cannot say that.
    no_log = " --no-log" if work.flags.no_log else ""
    command = f"supdist-engine run {shlex.quote(str(path))}{no_log}"
    needed = "".join(f"\n  {reason}" for reason in _needed(saved, path, environment))
    note = f"; it will ask for a permission:{needed}" if needed else ""
    print(printable(f"supdist-engine: saved as {path}: {command}{note}"), file=sys.stderr)


def _task(path: Path, work: Work, files: Sequence[str]) -> dict[str, Any]:
    flags, task = work.flags, work.task
    settings: dict[str, Any] = {"query": task.query}
    places = [each if each == STDIN else _relative(each, path) for each in files]
    settings |= {"context_file": places[0]} if len(places) == 1 else {"context_files": places}
    if task.raw_html:
        settings["raw_html"] = True
    for role in get_args(Role):
        settings[role] = _model(role, work, path)
    if limits := task.limits.model_dump(mode="json", exclude_unset=True):
        settings["limits"] = limits
    if sandbox := task.sandbox.model_dump(mode="json", exclude_unset=True):
        if task.sandbox.packages is not None:
            sandbox["packages"] = _relative(task.sandbox.packages, path)
        settings["sandbox"] = sandbox
    for name in ("log_dir", "prompts_dir"):
        if (folder := getattr(flags, name)) is not None:
            settings[name] = _relative(folder, path)
    if flags.cache is not None:
        settings["cache"] = flags.cache if flags.cache in ("off", "run") else _relative(flags.cache, path)
    return settings


def _model(role: Role, work: Work, path: Path) -> object:
    flags, models = work.flags, work.models
    if models.server is not None and role not in models.typed:
        keys = {} if models.curve_keys is None else {"curve_keys": _relative(models.curve_keys, path)}
        return {"handler": "broker", "address": models.server, **keys}
    spec = models.specs.get(role)
    if spec is None:
        return BUILTIN
    return _short_name(role, spec, flags, work) or _whole(role, spec)


def _short_name(role: Role, spec: ModelSpec, flags: RunFlags, work: Work) -> str | None:
    # The flag of the other role may stand for both.
    roles: tuple[Role, ...] = (role, "supervisor", "worker")
    for each in roles:
        name: str | None = getattr(flags, each)
        if name is not None and work.models.specs.get(each) is spec:
            return name
    return None


def _whole(role: Role, spec: ModelSpec) -> dict[str, Any]:
    fields = spec.model_dump(mode="json", exclude_defaults=True) | {"handler": spec.handler}
    # The environment's endpoint. A login or a query may be a key.
    urls = fields.get("base_url")
    if any(without_secrets(url) != url for url in ([urls] if isinstance(urls, str) else urls or [])):
        raise TaskError(
            f"--save: the {role}'s endpoint has a login or a query in its URL, which may be a key, "
            "and a file is no place for it; put the key into a variable"
        )
    return fields


def _relative(place: str | os.PathLike[str], path: Path) -> str:
    # Links are followed: `..` leads out of the folder that a link points to.
    folder, name = os.path.split(os.path.abspath(place))
    return os.path.relpath(os.path.join(os.path.realpath(folder), name), os.path.realpath(path.parent))


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise TaskError(
            f"--save {path}: the file exists, and is not overwritten; remove it, or name another"
        ) from None
    except OSError as error:
        raise TaskError(f"--save {path}: cannot write it: {error.strerror or error}") from error


def _needed(task: TaskFile, path: Path, environment: Environment) -> list[str]:
    """Return what ``run`` may only do with a permission, each as a sentence."""
    bound, reasons = Bound(path, environment), list[str]()
    folder = path.parent
    places = [task.context_file, *(task.context_files or ()), task.prompts_dir, task.sandbox.packages]
    reasons += [
        f"reads {place}: --allow-read {_path(folder, place)}" for place in places if _is_outside(place)
    ]
    places = [task.log_dir, task.cache]
    reasons += [
        f"writes {place}: --allow-write {_path(folder, place)}" for place in places if _is_outside(place)
    ]
    for role, spec in (("supervisor", task.supervisor), ("worker", task.worker)):
        try:
            if spec is not None:
                spec.check(role, folder, bound)
        except TaskError as error:
            reasons.append(str(error))
    return [*reasons, *dict.fromkeys(bound.withheld)]


def _is_outside(place: str | None) -> bool:
    return place is not None and os.path.normpath(place).split(os.sep)[0] == os.pardir


def _path(folder: Path, place: str | None) -> str:
    return shlex.quote(os.path.normpath(folder / (place or "")))
