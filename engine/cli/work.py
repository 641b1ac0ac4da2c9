"""What a command answers: a task, its flags, models and permissions."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ..config import RunConfig
from ..errors import TaskError
from ..option import mistyped_word
from ..supervisor.prompts import Prompts
from ..taskfile import TaskFile
from ..trust import Bound
from .models import Models
from .run_flags import RunFlags


@dataclass(frozen=True, slots=True)
class Work:
    """What a command answers.

    Attributes:
        task: with the limits and the sandbox of the flags.
        permissions: of the file that the task comes from.
        asked: the question, if it was asked for on the terminal.
    """

    task: TaskFile
    flags: RunFlags
    models: Models
    permissions: Bound
    asked: str | None = None

    @property
    def folder(self) -> Path:
        """The folder that paths of the task begin at."""
        return self.permissions.subject.parent

    def config(self) -> RunConfig:
        """Return the options of the run.

        Raises:
            TaskError: one is wrong or not permitted.
        """
        from ..broker.cache import ResponseCache

        # A flag is the user's own word; only the file's paths need a permission.
        task, cache = self.task, self.cache()
        typed: dict[str, object] = {
            # ``own``: the task file named the cache, not the user. Answers that another user kept are not
            # trusted.
            "cache": ResponseCache(cache, own=self.flags.cache is None) if isinstance(cache, Path) else cache,
            "log_dir": self.log_dir(),
        }
        if self.flags.packages is not None:
            typed["sandbox"] = task.sandbox
            task = task.model_copy(update={"sandbox": task.sandbox.model_copy(update={"packages": None})})
        if self.flags.prompts_dir is not None:
            typed["prompts"] = Prompts.from_directory(self.flags.prompts_dir)
            task = task.model_copy(update={"prompts_dir": None})
        return task.run_config(self.folder, self.permissions, **typed)

    def log_dir(self, suffix: str = "") -> Path | None:
        """Return the folder of the logs that the user or the task named, with a suffix to its name."""
        if self.flags.log_dir is not None:
            return _with_suffix(self.flags.log_dir, suffix)
        if self.task.log_dir is None:
            return None
        return self.permissions.writable(_with_suffix(self.folder / self.task.log_dir, suffix), "log_dir")

    @property
    def has_no_log(self) -> bool:
        """Whether the task says that there is no log."""
        return self.task.log_dir is None and "log_dir" in self.task.model_fields_set

    @property
    def cache_is_default(self) -> bool:
        """Whether neither the user nor the task said where answers are kept."""
        return self.flags.cache is None and "cache" not in self.task.model_fields_set

    @property
    def reads_stdin(self) -> bool:
        """Whether the task or its context comes from stdin."""
        return "-" in (*sys.argv[1:], self.task.context_file, *(self.task.context_files or ()))

    def cache(self) -> Path | str:
        """Return the file of the answers, or ``run`` or ``off``."""
        cache = self.task.cache if self.flags.cache is None else self.flags.cache
        if cache in ("off", "run"):
            return cache
        if self.flags.cache is not None:
            return _cache_file(cache)
        return self.permissions.writable(self.folder / cache, "cache")


def _cache_file(typed: str) -> Path:
    """Return the file of ``--cache``.

    Raises:
        TaskError: a word is misspelled, or the folder is missing.
    """
    if near := mistyped_word(typed, ("off", "run")):
        raise TaskError(f"--cache {typed}: did you mean {near}? A file needs its folder: ./{typed}")
    if not os.path.isdir(os.path.dirname(typed) or "."):
        raise TaskError(f"--cache {typed}: the folder {os.path.dirname(typed)} does not exist")
    return Path(typed)


def _with_suffix(folder: Path, suffix: str) -> Path:
    # Of the resolved path, as "." has no name.
    return folder if not suffix else Path(f"{os.path.realpath(folder)}{suffix}")
