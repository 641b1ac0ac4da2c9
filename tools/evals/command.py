"""Run ``eval`` with its flags."""

# Apart from eval_cli, so that --help does not import the engine.

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engine.broker.answers import lost_answers
from ...engine.cli.exit import NO_FILES
from ...engine.cli.model_line import models_line
from ...engine.cli.permissions import Allowed, explain_withheld_keys
from ...engine.cli.signals import Stopped, run_until_signal
from ...engine.errors import TaskError
from ...engine.model_specs import BuiltinSpec, ModelSpec, Role, configured
from ...engine.named_models import check_names, named_model
from ...engine.taskfile import TaskLimits, checked
from ...engine.trust import Bound, Environment, Permissions
from ...engine.trust.settings import user_secret
from ...handlers import HandlerError
from ...handlers.builtin import NOTICE
from ...sandbox_image.text import one_line
from ...tasks.base import TaskDataError
from ..tables import terminal_width
from .config import ExperimentConfig, differences, named_judge, read_config, resolve
from .folder import new_folder, read_manifest
from .permissions import permit
from .progress import progress
from .records import CONFIG
from .report import Summary
from .runner import run_experiment

SOME_FAILED = 1
_BUILTIN_NOTICE = "Strategy builtin: it answers by word statistics and is not a language model."
_UNRECOGNISED = (
    "your configuration folder cannot be written: this experiment will not be recognised as yours later"
)
_ROLES: tuple[Role, ...] = ("supervisor", "worker")


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of an experiment, as the flags name it."""

    out: Path | None
    resume: Path | None


def eval_with(
    flags: Mapping[str, Any],
    file: Path | None,
    place: Place,
    allowed: Allowed = Allowed(),  # noqa: B008 - it is frozen
    *,
    retry_failed: bool,
    as_json: bool,
    dry_run: bool = False,
) -> int:
    """Run the experiment, print its summary, and return the exit code.

    ``flags`` are the settings that were given as flags, ``file`` is that of ``--config``.

    Raises:
        TaskError: a flag or a setting is wrong.
        SandboxUnavailable, LogError, CacheError, NoAccess, Unreachable: as ``run_experiment``.
    """
    if retry_failed and place.resume is None:
        raise TaskError("--retry-failed needs an experiment: name its folder with --resume")
    for role in (*_ROLES, "judge"):
        check_names(role, flags.get(role), flags.get(f"{role}_model"))
    environment = allowed.environment()
    config, subject, is_own = _choose_settings(flags, file, place, environment)
    if user_secret() is None:
        _note(_UNRECOGNISED)
    permissions = allowed.bind(subject, environment, ask=not as_json, is_own=is_own)
    permit(config, _typed(flags), permissions)
    if dry_run:
        return _describe(config, permissions, place.resume)
    # Only now, so that a mistake leaves no folder.
    folder = place.resume or place.out or new_folder(config.task)
    try:
        with explain_withheld_keys(permissions), _explain_going_on(folder):
            summary = run_shown(
                config,
                folder,
                permissions.granted_keys(),
                resume=place.resume is not None,
                retry_failed=retry_failed,
                quiet=as_json,
                own_answers=not (is_own or "cache" in flags),
            )
    except Stopped as stopped:
        print(f"supdist-engine: {stopped}; {_how_to_go_on(folder)}", file=sys.stderr)
        return stopped.status
    except TaskDataError as error:
        raise TaskError(str(error)) from error
    finally:
        with suppress(OSError):
            # The folder is empty if nothing was started; else this fails.
            folder.rmdir()
    _print(summary, folder, as_json=as_json)
    if summary.unstored:
        note_lost_answers(summary.unstored)
        return NO_FILES
    return SOME_FAILED if summary.failed else 0


def _describe(config: ExperimentConfig, permissions: Bound, folder: Path | None) -> int:
    from .dry_run import describe

    try:
        print(describe(config, permissions, folder))
    except TaskDataError as error:
        raise TaskError(str(error)) from error
    return 0


def run_shown(
    config: ExperimentConfig,
    folder: Path,
    permissions: Permissions,
    *,
    resume: bool,
    retry_failed: bool,
    quiet: bool,
    own_answers: bool,
) -> Summary:
    """Run an experiment and show its progress on stderr. See ``run_experiment``.

    Raises:
        Stopped: by a signal; ended examples are kept.
    """
    with progress(quiet=quiet) as observer:
        observer.note(_models_line(config, permissions))
        if any(isinstance(spec, BuiltinSpec) for spec in (config.supervisor, config.worker)):
            observer.note(NOTICE if config.strategy != "builtin" else _BUILTIN_NOTICE)
        work = run_experiment(
            config,
            folder,
            resume=resume,
            retry_failed=retry_failed,
            observer=observer,
            permissions=permissions,
            own_answers=own_answers,
        )
        return run_until_signal(work)


def _models_line(config: ExperimentConfig, permissions: Permissions) -> str:
    specs: dict[str, tuple[Role, ModelSpec | None]] = {
        "supervisor": ("supervisor", config.supervisor),
        "worker": ("worker", config.worker),
        "judge": ("supervisor", None if config.judge == "none" else config.judge),
    }
    # Built only to be named: nothing connects.
    return models_line(
        {
            name: spec.build(role, Path(), config.limits.worker_ctx_k, permissions)
            for name, (role, spec) in specs.items()
            if spec is not None
        }
    )


def note_lost_answers(count: int) -> None:
    """Show how many answers the cache could not keep."""
    _note(f"{lost_answers(count)}: another experiment pays for them again")


def _choose_settings(
    flags: Mapping[str, Any], file: Path | None, place: Place, environment: Environment
) -> tuple[ExperimentConfig, Path | None, bool]:
    """Return the settings, their file, and whether they are this user's own."""
    if place.resume is None:
        settings = _settings(flags, read_config(file) if file else None, environment)
        # What the user typed is the user's own; a file is not.
        return resolve(settings, environment), file, file is None
    config, is_own = _resumed(flags, file, place.out, place.resume, environment)
    subject = place.resume / CONFIG
    if not is_own:
        _note(
            f"{subject} is not recognised as yours (it, the working directory or your configuration folder "
            "has changed): its settings may use only its own folder, "
            "and cached answers of other users are ignored"
        )
    return config, subject, is_own


def _settings(
    flags: Mapping[str, Any], base: ExperimentConfig | None, environment: Environment
) -> ExperimentConfig:
    settings = base or ExperimentConfig()
    found = settings.model_dump(mode="json")
    for name, value in flags.items():
        if name in TaskLimits.model_fields:
            found["limits"][name] = value
        elif name in ExperimentConfig.model_fields and name != "task_options":
            found[name] = value
    found["task_options"] |= dict(map(_task_option, flags.get("task_options", ())))
    if "backend" in flags:
        found["sandbox"]["backend"] = flags["backend"]
    named = _named_models(flags, settings, environment)
    found |= named
    if found["strategy"] == "supervisor":
        typed = {**flags, **named}
        # Like `run`: what is typed for one role serves both, and not beside a builtin model.
        for role, other in (_ROLES, _ROLES[::-1]):
            if found[role] is None and not configured(environment, role):
                found[role] = typed.get(other)
    return checked(ExperimentConfig, found, "the settings are wrong")


def _named_models(
    flags: Mapping[str, Any], settings: ExperimentConfig, environment: Environment
) -> dict[str, Any]:
    """Return the models whose names at an endpoint were given."""
    found: dict[str, Any] = {}
    for role in _ROLES:
        if (model := flags.get(f"{role}_model")) is not None:
            before = getattr(settings, role)
            found[role] = named_model(role, model, environment, before).model_dump(mode="json")
    if (model := flags.get("judge_model")) is not None:
        spec = named_judge(model, environment)
        found["judge"] = spec if spec == "none" else spec.model_dump(mode="json")
    return found


def _resumed(
    flags: Mapping[str, Any], file: Path | None, out: Path | None, folder: Path, environment: Environment
) -> tuple[ExperimentConfig, bool]:
    if file is not None or out is not None:
        raise TaskError("--resume takes the settings of its folder: omit --config and --out")
    manifest, is_own = read_manifest(folder)
    if manifest is None:
        raise TaskError(f"--resume {folder}: there is no experiment in it; an experiment has a config.json")
    before = manifest.settings()
    config = _settings(flags, before, environment)
    # Flags may repeat a setting, but not change it.
    changed = differences(before, config)
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise TaskError(f"--resume {folder}: it was started with other settings, and keeps them:\n{lines}")
    return config, is_own


def _typed(flags: Mapping[str, Any]) -> set[str]:
    return {*flags, *(f"task_options.{_task_option(text)[0]}" for text in flags.get("task_options", ()))}


def _task_option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise TaskError(f"-T {text}: an option of the task is KEY=VALUE")
    # JSON if it is valid, else text: `length=10000` is a number.
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _note(text: str) -> None:
    print(f"supdist-engine: {one_line(text)}", file=sys.stderr)


@contextmanager
def _explain_going_on(folder: Path) -> Generator[None]:
    try:
        yield
    except HandlerError:
        # Before the error, which the command prints last.
        print(f"supdist-engine: {_how_to_go_on(folder)}", file=sys.stderr)
        raise


def _how_to_go_on(folder: Path) -> str:
    return f"go on with --resume {folder}" if (folder / CONFIG).exists() else "nothing was started"


def _print(summary: Summary, folder: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary.as_data(str(folder))))
        return
    print(summary.as_text(terminal_width()))
    if summary.failed:
        print(f"{summary.failed} failed: repeat them with --resume {folder} --retry-failed", file=sys.stderr)
    print(folder)
