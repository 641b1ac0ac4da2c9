"""What ``eval`` does with its flags. Apart from them, so that ``--help`` does not pay for the engine."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from ...engine.cli.permissions import Allowed, withheld_keys_named
from ...engine.errors import TaskError
from ...engine.model_specs import BuiltinSpec, ModelSpec, Role, specified_by
from ...engine.private_files import PrivateFolder
from ...engine.taskfile import TaskLimits, checked
from ...engine.trust import Environment, Permissions
from ...engine.trust.settings import user_secret
from ...handlers.builtin import NOTICE
from ...sandbox_image.text import one_line
from ...tasks.base import TaskDataError
from .config import ExperimentConfig, differences, judge_spec, read_config, resolve
from .folder import Folder
from .permissions import permit
from .progress import as_data, progress, result_table
from .records import CONFIG
from .runner import run_experiment
from .summary import Summary

T = TypeVar("T")

SOME_FAILED = 1
_BUILTIN = "Strategy builtin: it answers by word statistics and is not a language model."
_ROLES: tuple[Role, ...] = ("supervisor", "worker")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an experiment is, as the flags say."""

    out: Path | None
    resume: Path | None


class Stopped(BaseException):
    """A signal ended the work; like KeyboardInterrupt it is no error."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


def eval_with(
    flags: Mapping[str, Any],
    file: Path | None,
    place: Place,
    allowed: Allowed = Allowed(),  # noqa: B008 - it is frozen
    *,
    retry_failed: bool,
    as_json: bool,
) -> int:
    """Run, print, and give the exit code.

    Raises:
        TaskError: a flag or a setting is wrong.
        SandboxUnavailable, LogError, CacheError, NoAccess: as ``run_experiment``.
    """
    if retry_failed and place.resume is None:
        raise TaskError("--retry-failed is for an experiment that is there: name it with --resume")
    environment = allowed.environment()
    subject, is_own = file, file is None
    if place.resume is None:
        config = resolve(_settings(flags, read_config(file) if file else None, environment), environment)
    else:
        config, is_own = _resumed(flags, file, place.out, place.resume, environment)
        subject = place.resume / CONFIG
        if not is_own:
            _note(
                f"{subject} is not known as yours (it, the working directory or your configuration folder has changed): "
                "its settings reach no further than its folder, and cached answers of others are passed over"
            )
    if user_secret() is None:
        _note(
            "your configuration folder cannot be written: what you run now will not be known as yours later"
        )
    permissions = allowed.bind(subject, environment, ask=not as_json, is_own=is_own)
    permit(config, _typed(flags), permissions)
    folder = place.resume or place.out or _new_folder(config.task)
    try:
        with withheld_keys_named(permissions):
            summary = run_shown(
                config,
                folder,
                permissions.granted(),
                resume=place.resume is not None,
                retry_failed=retry_failed,
                quiet=as_json,
                own_answers=not (is_own or "cache" in flags),
            )
    except Stopped as stopped:
        left = f"go on with --resume {folder}" if (folder / CONFIG).exists() else "nothing was begun"
        print(f"supdist-engine: interrupted; {left}", file=sys.stderr)
        return 128 + stopped.number
    except TaskDataError as error:
        raise TaskError(str(error)) from error
    finally:
        with suppress(OSError):
            folder.rmdir()  # where nothing was begun it is empty
    _print(summary, folder, as_json=as_json)
    return SOME_FAILED if summary.failed else 0


def _note(text: str) -> None:
    print(f"supdist-engine: {one_line(text)}", file=sys.stderr)


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
    """``run_experiment`` to its end, with its progress on stderr.

    Raises:
        Stopped: by a signal; what ended is kept.
    """
    with progress(quiet=quiet) as screen:
        if any(isinstance(spec, BuiltinSpec) for spec in (config.supervisor, config.worker)):
            screen.note(NOTICE if config.strategy != "builtin" else _BUILTIN)
        work = run_experiment(
            config,
            folder,
            resume=resume,
            retry_failed=retry_failed,
            observer=screen,
            permissions=permissions,
            own_answers=own_answers,
        )
        return until_a_signal(work)


def _typed(flags: Mapping[str, Any]) -> set[str]:
    """The settings that the user typed."""
    return {*flags, *(f"task_options.{_option(text)[0]}" for text in flags.get("task_options", ()))}


def _settings(
    flags: Mapping[str, Any], base: ExperimentConfig | None, environment: Environment
) -> ExperimentConfig:
    """The settings of the flags, over those of a base."""
    settings = base or ExperimentConfig()
    found = settings.model_dump(mode="json")
    for name, value in flags.items():
        if name in TaskLimits.model_fields:
            found["limits"][name] = value
        elif name in ExperimentConfig.model_fields and name != "task_options":
            found[name] = value
    found["task_options"] |= dict(map(_option, flags.get("task_options", ())))
    if "backend" in flags:
        found["sandbox"]["backend"] = flags["backend"]
    for role in _ROLES:
        if (model := flags.get(f"{role}_model")) is not None:
            before = getattr(settings, role)
            found[role] = named_model(role, model, before, environment).model_dump(mode="json")
    if (model := flags.get("judge_model")) is not None:
        spec = judge_spec(model, environment)
        found["judge"] = spec if spec == "none" else spec.model_dump(mode="json")
    return checked(ExperimentConfig, found, "the settings are wrong")


def _option(text: str) -> tuple[str, Any]:
    """KEY=VALUE; the value is JSON where it can be, else text."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise TaskError(f"-T {text}: an option of the task is KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def named_model(role: Role, model: str, before: ModelSpec | None, environment: Environment) -> ModelSpec:
    """A model by its name: where the settings name an endpoint, there, else at the environment's.

    Raises:
        TaskError: the environment configures no endpoint.
    """
    if model == "builtin":
        return BuiltinSpec(handler="builtin")
    if before is not None and hasattr(before, "model"):
        return before.model_copy(update={"model": model})
    spec = specified_by(environment.with_value(f"{role.upper()}_MODEL", model), role)
    if spec is None:
        raise TaskError(
            f"{role} {model}: no endpoint to ask it at; set TOGETHER_API_KEY, OPENAI_API_KEY or BASE_URL, or take "
            "`builtin`"
        )
    return spec


def _resumed(
    flags: Mapping[str, Any], file: Path | None, out: Path | None, folder: Path, environment: Environment
) -> tuple[ExperimentConfig, bool]:
    """The settings of a folder, which flags may repeat, but not change; and whether they are this user's own."""
    if file is not None or out is not None:
        raise TaskError("--resume takes the settings of its folder: leave --config and --out away")
    manifest, is_own = Folder(folder).manifest_and_owner()
    if manifest is None:
        raise TaskError(f"--resume {folder}: there is no experiment; it would have a config.json")
    before = manifest.settings()
    config = _settings(flags, before, environment)
    changed = differences(before, config)
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise TaskError(f"--resume {folder}: it was begun with other settings, and keeps them:\n{lines}")
    return config, is_own


def _new_folder(task: str) -> Path:
    """A folder of its own, by the time."""
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    for suffix in itertools.chain([""], (f"-{number}" for number in itertools.count(2))):
        folder = Path("logs", task, name + suffix)
        try:
            with PrivateFolder.open(folder.parent, create=True):
                folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError:
            pass  # whoever writes there says why not
        return folder
    raise AssertionError


def until_a_signal(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, or to Ctrl-C or SIGTERM: then what was begun is cancelled and closed first; a second one kills.

    Raises:
        Stopped: by a signal.
    """

    async def watched() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        came: list[signal.Signals] = []

        def stop(number: signal.Signals) -> None:
            came.append(number)
            for each in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(each)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        try:
            return await work
        except asyncio.CancelledError:
            if came:
                raise Stopped(came[0]) from None
            raise

    return asyncio.run(watched())


def _print(summary: Summary, folder: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(as_data(summary, str(folder))))
        return
    print(result_table(summary))
    if summary.failed:
        print(
            f"{summary.failed} failed: try them again with --resume {folder} --retry-failed", file=sys.stderr
        )
    print(folder)
