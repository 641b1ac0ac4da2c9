"""Runs an experiment: the examples of its sample that are not in its folder yet."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from anyio import to_thread

from ...engine.errors import TaskError
from ...engine.trust import UNBOUND, Permissions
from ...handlers import all_or_none
from ...tasks.base import Example, Task, TaskDataError
from ...tasks.registry import create
from .config import ExperimentConfig, Manifest, differences, provenance, resolve
from .executors import Executor, Job, open_executor
from .folder import ExperimentFolder, open_folder, read_manifest
from .model_calls import ignore
from .progress import Observer
from .report import Summary
from .strategies import CacheFile

_EXAMPLE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


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
    """Run what is missing in the folder, and return the summary of all examples.

    Args:
        config: the settings; missing models come from the environment, or are builtin.
        resume: continue the folder's experiment; without it the folder must hold none.
        retry_failed: repeat failed examples.
        task: by default from the settings.
        permissions: which keys the models get.
        own_answers: ignore other users' answers in a ``cache`` file.

    Raises:
        TaskError: a setting is wrong or has changed, or another process has the folder.
        TaskDataError: the data is wrong or has changed.
        SandboxUnavailable, LogError, CacheError, NoAccess, Unreachable: no example can run.
    """
    config = resolve(config, os.environ)
    if task is None:
        task = await to_thread.run_sync(create, config.task, config.task_options)
    with open_folder(folder) as place:
        before, _ = read_manifest(folder)
        if before is not None and not resume:
            raise TaskError(
                f"{folder} holds an experiment; continue it with --resume {folder}, or choose another folder"
            )
        sample = await to_thread.run_sync(_sample, task, config)
        data_hash = await to_thread.run_sync(task.data_hash)
        if before is not None:
            _check_unchanged(before, config, data_hash, folder)
            place.open_records()
        jobs = _missing(sample, place, retry_failed=retry_failed)
        if observer is not None:
            if config.n > len(sample):
                observer.note(_too_few(config, task, len(sample)))
            _report_start(observer, sample, jobs, place)
        unstored = 0
        if jobs:
            cache = _cache(config, place, own=own_answers)
            note = ignore if observer is None else observer.note
            async with open_executor(config, task, cache, permissions, note) as executor:
                # Only now, when every setting was found to work.
                if before is None:
                    ids = [example.id for example in sample]
                    place.write_manifest(Manifest.of(config, provenance(data_hash, ids, sys.argv)))
                    place.open_records()
                unstored = await _run_jobs(executor, place, jobs, config.concurrency, observer)
        summary = Summary.of(config, [place.records[example.id] for example in sample])
        return replace(summary, unstored=unstored)


async def _run_jobs(
    executor: Executor,
    place: ExperimentFolder,
    jobs: Sequence[Job],
    concurrency: int,
    observer: Observer | None,
) -> int:
    """Return how many paid answers could not be kept."""
    unstored = 0
    # One iterator for all workers: each takes the next job when it is free.
    waiting = iter(jobs)

    async def work() -> None:
        nonlocal unstored
        for job in waiting:
            if job.answered is None:
                place.set_aside(job.example.id)
            ended = await executor.run(job, place.logs(job.example.id))
            # A failed example is recorded too, and the others go on.
            unstored += ended.unstored
            place.add(ended.record)
            if observer is not None:
                observer.ended(ended.record)
            if ended.fatal is not None:
                raise ended.fatal

    await all_or_none([work() for _ in range(min(concurrency, len(jobs)))])
    return unstored


def _missing(sample: Sequence[Example], place: ExperimentFolder, *, retry_failed: bool) -> list[Job]:
    jobs: list[Job] = []
    for index, example in enumerate(sample):
        record = place.records.get(example.id)
        if record is None:
            jobs.append(Job(index, example))
        elif record.error is not None and retry_failed:
            # If only the judge failed, the answer is kept and only the judge is asked again.
            jobs.append(Job(index, example, record if record.error.stage == "score" else None))
    return jobs


def _report_start(
    observer: Observer, sample: Sequence[Example], jobs: Sequence[Job], place: ExperimentFolder
) -> None:
    repeated = {job.example.id for job in jobs}
    ended = [record for record in place.records.values() if record.example not in repeated]
    observer.begin(len(sample), ended)


def _cache(config: ExperimentConfig, place: ExperimentFolder, *, own: bool) -> CacheFile | None:
    # The folder may have been copied from another user: their answers in it are not trusted.
    if config.cache == "experiment":
        return CacheFile(place.cache, own=True)
    return None if config.cache == "off" else CacheFile(Path(config.cache), own)


def _sample(task: Task, config: ExperimentConfig) -> list[Example]:
    sample = task.sample(config.n, config.seed)
    if not sample:
        raise TaskDataError(f"task {config.task}: no example is left; check -n and the task's options (-T)")
    seen = set[str]()
    for example in sample:
        # An id is the name of a folder.
        if not _EXAMPLE_ID.fullmatch(example.id):
            raise TaskDataError(
                f"task {config.task}: {example.id[:200]!r} is no id: an id has at most 200 letters, digits, "
                "'.', '_' and '-', and does not begin with '.'"
            )
        if example.id in seen:
            raise TaskDataError(f"task {config.task}: two examples have the id {example.id}")
        seen.add(example.id)
    return sample


def _too_few(config: ExperimentConfig, task: Task, examples: int) -> str:
    # Generated tasks have this option.
    more = f"; for more, add -T n={config.n}" if "n" in getattr(type(task), "model_fields", {}) else ""
    found = f"{examples:,} example{'s' if examples != 1 else ''}"
    return f"the task {config.task} has only {found}, not {config.n:,}: all of them are run{more}"


def _check_unchanged(before: Manifest, now: ExperimentConfig, data_hash: str, folder: Path) -> None:
    changed = differences(before.settings(), now)
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise TaskError(
            f"{folder} was started with other settings; choose another folder for these:\n{lines}"
        )
    if before.provenance.data_hash != data_hash:
        raise TaskDataError(
            f"{folder} was started with other data ({before.provenance.data_hash[:12]}) than task {now.task} "
            f"has now ({data_hash[:12]}); restore that data, or choose another folder"
        )
