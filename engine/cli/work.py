"""What a command answers: a task, its flags, models and permissions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config import RunConfig
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
    """

    task: TaskFile
    flags: RunFlags
    models: Models
    permissions: Bound

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
        task, cache = self.task, self._cache()
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

    def log_dir(self) -> Path | None:
        """Return the folder of the logs."""
        if self.flags.log_dir is not None or self.task.log_dir is None:
            return self.flags.log_dir
        return self.permissions.writable(self.folder / self.task.log_dir, "log_dir")

    def _cache(self) -> Path | str:
        cache = self.task.cache if self.flags.cache is None else self.flags.cache
        if cache in ("off", "run"):
            return cache
        if self.flags.cache is not None:
            return Path(cache)
        return self.permissions.writable(self.folder / cache, "cache")
