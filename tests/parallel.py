"""Run the tests in several processes at once (pytest-xdist).

Each process has a folder for temporary files of its own, in which its engines leave nothing. A test that is marked
``timing`` judges by the clock: it runs while no other test does.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

_FOLDER = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the process's folder for temporary files, before anything asks for it."""
    if config.getoption("numprocesses", None) and not _is_worker(config):
        return
    # pytest's own folder stays where it is: it is kept after the run, and socket paths below it are short.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix="supdist-test-"))
    config.stash[_FOLDER] = folder
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it."""
    if _FOLDER in config.stash:
        shutil.rmtree(config.stash[_FOLDER], ignore_errors=True)


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.fixture(scope="session", autouse=True)
def _nothing_of_ours_is_left_in_tmp(request: pytest.FixtureRequest) -> Generator[None]:
    """Of this process: an engine that a test kills while it starts leaves its folder."""
    yield
    left = [path.name for path in request.config.stash[_FOLDER].glob(f"supdist-{os.getpid()}-*")]
    assert left == [], "left in the folder for temporary files"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Take turns with the other processes, before the test's time limit begins to count."""
    if not _is_worker(item.config):
        return (yield)
    # The folder of tmp_path is a process's own; the one above is the run's.
    factory: pytest.TempPathFactory = getattr(item.config, "_tmp_path_factory")  # noqa: B009
    with _turn(factory.getbasetemp().parent, alone=item.get_closest_marker("timing") is not None):
        return (yield)


@contextmanager
def _turn(folder: Path, *, alone: bool) -> Generator[None]:
    """Hold the right to run, alone or beside others.

    Who waits to be alone holds the entrance meanwhile, so that no others begin before it: without that, two processes
    whose tests overlap would keep a third waiting for ever.
    """
    with open(folder / "entrance.lock", "w") as entrance, open(folder / "running.lock", "w") as running:
        fcntl.flock(entrance, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(entrance, fcntl.LOCK_UN)
        yield
