"""The command ``supdist-engine run``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import takes
from .permissions import Allowed, AllowReadOption, AllowWriteOption
from .run_flags import RunFlags

if TYPE_CHECKING:
    from ..taskfile import TaskFile


STDIN = Path("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFlags(RunFlags):
    """The arguments of ``run``."""

    task: Annotated[
        Path,
        typer.Argument(
            help="The task file (JSON or TOML), or - for stdin. `supdist-engine schema` describes it."
        ),
    ]
    allow_read: AllowReadOption = None
    allow_write: AllowWriteOption = None


@takes(TaskFlags)
def run(flags: TaskFlags) -> None:
    """Answer the question of a task file. The answer goes to stdout, progress to stderr.

    A flag replaces the setting of the task file.
    """
    from ..taskfile import read_task
    from .answering import answer
    from .documents import read_stdin
    from .models import Models
    from .work import Work

    allowed = Allowed.from_options(flags.env_file, flags.allow_read, flags.allow_write, flags.trust_endpoint)
    environment = allowed.environment()
    # A program that reads JSON cannot answer a question.
    permissions = allowed.bind(flags.task, environment, ask=not flags.as_json)
    task = flags.applied_to(_task_of_stdin() if flags.task == STDIN else read_task(flags.task))
    models = Models.of(flags, environment, task.supervisor, task.worker)
    work = Work(task, flags, models, permissions)
    answer(work, lambda: task.read_context(work.folder, permissions, read_stdin))


def _task_of_stdin() -> TaskFile:
    from ..taskfile import TaskFile, decoded, parse_as
    from .stdin import read_bytes

    text = decoded(read_bytes("a task"), "cannot read a task from stdin")
    # A file has its format in its name.
    name = "stdin" if text.lstrip().startswith("{") else "stdin.toml"
    return parse_as(TaskFile, text, Path(name), "task")
