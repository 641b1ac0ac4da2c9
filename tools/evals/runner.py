"""Running an experiment: what is left of its sample, so many examples at once, each recorded as it ends."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from anyio import to_thread

from ...engine.errors import TaskError
from ...engine.trust import UNBOUND, Permissions
from ...handlers import all_or_none
from ...tasks.base import Example, Task, TaskDataError
from ...tasks.registry import create
from .config import ExperimentConfig, Manifest, differences, provenance, resolve
from .executor import Executor, Job, LocalExecutor
from .folder import Folder
from .ray_executor import RayExecutor
from .records import Record
from .strategies import CacheFile
from .summary import Summary

_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


class Observer(Protocol):
    """Who watches an experiment. Called in the event loop; it must not block."""

    def note(self, text: str) -> None:
        """A line to keep."""
        ...

    def begin(self, total: int, ended: Sequence[Record]) -> None:
        """It begins: examples in the sample, and those of them that ended before."""
        ...

    def ended(self, record: Record) -> None:
        """An example has ended."""
        ...


async def run_experiment(
    config: ExperimentConfig,
    folder: Path,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    task: Task | None = None,
    observer: Observer | None = None,
    permissions: Permissions = UNBOUND,
    own_answers: bool = False,
) -> Summary:
    """Run what is not in the folder yet, and give what is there then.

    An example that fails is recorded and stops nothing. Cancelled, or stopped by an error that would befall all
    examples, it leaves everything that ended; with ``resume`` it goes on there, and an example that was under way is
    run again with the answers that it had been given, from the cache.

    Args:
        config: the settings; models that it does not name are the environment's, else builtin.
        folder: where all is kept.
        resume: whether to go on with what is in the folder; without it the folder must hold no experiment.
        retry_failed: whether to run those again that failed; where only the judging did, that alone is done again.
        task: the task; by default it is made of the settings.
        observer: told how it goes.
        permissions: which keys the models get.
        own_answers: whether answers that another user kept in the cache's file are passed over. In the folder's own
            cache they always are.

    Raises:
        TaskError: a setting is wrong, or differs from the folder's; or another process is at it.
        TaskDataError: the task's data cannot be used, or are not those that the folder was begun with.
        SandboxUnavailable, LogError, CacheError, NoAccess: no example could be run as things are.
    """
    config = resolve(config, os.environ)
    if task is None:
        task = await to_thread.run_sync(create, config.task, config.task_options)
    with Folder(folder) as place:
        before = place.manifest()
        if before is not None and not resume:
            raise TaskError(
                f"{folder} holds an experiment; go on with --resume {folder}, or choose another folder"
            )
        sample = await to_thread.run_sync(_sample, task, config)
        data_hash = await to_thread.run_sync(task.data_hash)
        if before is not None:
            _check(before, config, data_hash, folder)
            place.open_records()
        jobs = _left(sample, place, retry_failed=retry_failed)
        if observer is not None:
            redone = {job.example.id for job in jobs}
            observer.begin(
                len(sample), [each for each in place.records.values() if each.example not in redone]
            )
        if jobs:
            cache = _cache(config, place, own=own_answers)
            async with _executor(config, task, cache, permissions) as executor:
                if before is None:  # not before all that can be wrong was found
                    ids = [example.id for example in sample]
                    place.begin(Manifest.of(config, provenance(data_hash, ids, sys.argv)))
                    place.open_records()
                await _run(executor, place, jobs, config.concurrency, observer)
        return Summary.of(config, [place.records[example.id] for example in sample])


async def _run(
    executor: Executor, place: Folder, jobs: Sequence[Job], concurrency: int, observer: Observer | None
) -> None:
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            if job.answered is None:
                place.set_aside(job.example.id)
            ended = await executor.run(job, place.logs(job.example.id))
            place.add(ended.record)
            if observer is not None:
                observer.ended(ended.record)
            if ended.fatal is not None:
                raise ended.fatal

    await all_or_none([work() for _ in range(min(concurrency, len(jobs)))])


def _left(sample: Sequence[Example], place: Folder, *, retry_failed: bool) -> list[Job]:
    jobs: list[Job] = []
    for index, example in enumerate(sample):
        record = place.records.get(example.id)
        if record is None:
            jobs.append(Job(index, example))
        elif record.error is not None and retry_failed:
            jobs.append(Job(index, example, record if record.error.stage == "score" else None))
    return jobs


def _executor(
    config: ExperimentConfig, task: Task, cache: CacheFile | None, permissions: Permissions
) -> Executor:
    if config.executor == "ray":
        return RayExecutor(config, task, permissions)
    return LocalExecutor(config, task, cache, permissions)


def _cache(config: ExperimentConfig, place: Folder, *, own: bool) -> CacheFile | None:
    if config.cache == "experiment":
        return CacheFile(place.cache, own=True)
    return None if config.cache == "off" else CacheFile(Path(config.cache), own)


def _sample(task: Task, config: ExperimentConfig) -> list[Example]:
    """The sample, with ids that can name folders.

    Raises:
        TaskDataError: it is empty, an id is not what it must be, or there twice.
    """
    sample = task.sample(config.n, config.seed)
    if not sample:
        raise TaskDataError(f"task {config.task}: no example is left; look at -n and at the task's options")
    seen = set[str]()
    for example in sample:
        if not _ID.fullmatch(example.id):
            raise TaskDataError(
                f"task {config.task}: {example.id[:200]!r} is no id: letters, digits, '.', '_' and '-', at most 200, "
                "and no '.' first"
            )
        if example.id in seen:
            raise TaskDataError(f"task {config.task}: two examples have the id {example.id}")
        seen.add(example.id)
    return sample


def _check(before: Manifest, now: ExperimentConfig, data_hash: str, folder: Path) -> None:
    changed = differences(before.settings(), now)
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise TaskError(f"{folder} was begun with other settings; choose another folder for these:\n{lines}")
    if before.provenance.data_hash != data_hash:
        raise TaskDataError(
            f"{folder} was begun with other data ({before.provenance.data_hash[:12]}) than task {now.task} has now "
            f"({data_hash[:12]}); bring that back, or choose another folder"
        )
