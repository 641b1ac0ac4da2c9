"""Examples over a Ray cluster (extra ``ray``): one Ray task an example, with models and sandboxes of its own on its node.

A task writes to a folder of its node's and gives logs and record back; the driver alone writes the experiment's folder.
So a task that Ray runs again, because its node died, changes nothing that is there, and an example is recorded once.
Whatever a node gives back is unpickled by Ray: nodes are as trusted as the driver. Keys do not travel: each node has them
in its own environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from anyio import to_thread

from ...engine.errors import SandboxUnavailable, TaskError
from ...engine.private_files import PrivateFolder
from ...engine.trust import UNBOUND, Permissions
from ...tasks.base import Task
from .config import ExperimentConfig
from .executor import FATAL, Ended, Job, LocalExecutor, failure, unanswered
from .records import Record
from .strategies import CacheFile

_RETRIES = 3
"""Times that an example is begun anew where its node or its process died."""

_LOCALHOST_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, it keeps Ray on 127.0.0.1, on any system. Otherwise Ray takes the machine's own address in its place, also where
init() is given this one, and listens on all.
"""

Reply = tuple[str | None, tuple[str, tuple[str, ...]] | None, dict[str, bytes]]
"""A record as JSON, if the example ended; a fatal error by its name and arguments; the logs by their names."""


class RayExecutor:
    """On the nodes of a cluster. See ``Executor``; ``TaskError`` where there is no Ray, or no cluster at the address."""

    def __init__(self, config: ExperimentConfig, task: Task, permissions: Permissions = UNBOUND) -> None:
        """Nothing is opened yet."""
        self._config = config
        self._task = task
        self._permissions = permissions
        # Ray's threads print what befalls nodes to stdout, which is the result's.
        self._printing = contextlib.redirect_stdout(sys.stderr)

    async def __aenter__(self) -> RayExecutor:
        options = _options(self._config.ray_address)
        try:
            self._ray: Any = import_module("ray")
        except ImportError as error:
            raise TaskError(
                f"--executor ray: {error}; install the extra: pip install 'supdist-engine[ray]'"
            ) from error
        self._printing.__enter__()
        try:
            self._ray.init(**options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            self._printing.__exit__(None, None, None)
            raise TaskError(f"--executor ray: no cluster can be had: {error}") from error
        self._run = self._ray.remote(max_retries=_RETRIES, num_cpus=1)(run_here)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()
        self._printing.__exit__(None, None, None)

    async def run(self, job: Job, logs: Path) -> Ended:
        """See ``Executor.run``."""
        started = time.monotonic()
        settings = self._config.model_dump_json()
        work = self._run.remote(settings, self._task, job, version("supdist-engine"), self._permissions)
        try:
            reply: Reply = await work
        except asyncio.CancelledError:
            self._ray.cancel(work, force=True)  # the gentle way does not reach a task that waits
            raise
        except self._ray.exceptions.RayError as error:
            context = await to_thread.run_sync(self._task.context, job.example)
            record = unanswered(self._config, job, context, judge=self._task.wants_judge)
            failed = {"seconds": time.monotonic() - started, "error": failure("run", error)}
            return Ended(record.model_copy(update=failed))
        text, told, files = reply
        if files:
            await to_thread.run_sync(_write, logs, files)
        fatal = None if told is None else _fatal(*told)
        if text is None:
            assert fatal is not None
            raise fatal
        return Ended(Record.model_validate_json(text), fatal)


def run_here(settings: str, task: Task, job: Job, driver: str, permissions: Permissions = UNBOUND) -> Reply:
    """An example, on this node.

    Args:
        settings: the experiment's, as JSON.
        task: the task.
        job: the example.
        driver: the driver's version of this package.
        permissions: the names of the keys for each endpoint; it holds no key.
    """
    folder = Path(tempfile.mkdtemp(prefix="supdist-example-"))
    logs = folder / "logs"
    try:
        if (here := version("supdist-engine")) != driver:
            raise TaskError(
                f"node {os.uname().nodename} has supdist-engine {here}, the driver {driver}; install the same"
            )
        config = ExperimentConfig.model_validate_json(settings)
        ended = asyncio.run(_run_one(config, task, job, logs, permissions))
    except FATAL as error:
        return None, _told(error), _files(logs)
    else:
        told = None if ended.fatal is None else _told(ended.fatal)
        return ended.record.model_dump_json(), told, _files(logs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _run_one(
    config: ExperimentConfig, task: Task, job: Job, logs: Path, permissions: Permissions
) -> Ended:
    """The experiment's own cache is the driver's, and out of reach; a file of the user's is this node's."""
    cache = None if config.cache in ("off", "experiment") else CacheFile(Path(config.cache))
    async with LocalExecutor(config, task, cache, permissions) as executor:
        return await executor.run(job, logs)


def _options(address: str | None) -> dict[str, Any]:
    """Without a cluster one is started here. Ray is imported after this."""
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith(("local", "127.")):
        os.environ.setdefault(_LOCALHOST_ONLY, "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    return {"address": address, **({"include_dashboard": False} if address == "local" else {}), **quiet}


def _told(error: Exception) -> tuple[str, tuple[str, ...]]:
    if isinstance(error, SandboxUnavailable):
        return type(error).__name__, (error.capability, error.remedy)
    return type(error).__name__, (str(error),)


def _fatal(name: str, arguments: tuple[str, ...]) -> Exception:
    known = {kind.__name__: kind for kind in FATAL}
    return known[name](*arguments)


def _files(logs: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in logs.iterdir()} if logs.exists() else {}


def _write(logs: Path, files: dict[str, bytes]) -> None:
    with PrivateFolder.open(logs, create=True) as folder:
        for name, content in files.items():
            with folder.replacing(Path(name).name) as file:
                file.write(content)
