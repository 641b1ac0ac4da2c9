"""Run the tests in several processes at once (pytest-xdist).

Each process has its own folder for temporary files; nothing of ours may be left there. A test marked
``timing`` runs while no other test does.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

_TURN_SECONDS = 600.0
_FOLDER = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the process's folder for temporary files, before anything asks for it."""
    # pytest's own folder stays where it is: it is kept after the run, and socket paths below it are short.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix="t-"))  # short, for sockets; a worker's lies in the controller's
    config.stash[_FOLDER] = folder
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")  # what a test trusts, the user does not


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it."""
    shutil.rmtree(config.stash[_FOLDER], ignore_errors=True)


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.fixture(scope="session", autouse=True)
def _nothing_of_ours_is_left_in_tmp(request: pytest.FixtureRequest) -> Generator[None]:
    """A test that kills an engine while it starts gives it another folder: what is left then is known."""
    yield
    left = [path.name for path in request.config.stash[_FOLDER].glob("supdist-*")]
    assert left == [], "left in the folder for temporary files"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Take turns with the other processes, before the test's time limit begins to count."""
    if not _is_worker(item.config):
        return (yield)
    # The folder of tmp_path is a process's own; the one above is the run's.
    factory: pytest.TempPathFactory = getattr(item.config, "_tmp_path_factory")  # noqa: B009 - a type checker knows no such attribute
    with _turn(factory.getbasetemp().parent, alone=item.get_closest_marker("timing") is not None):
        return (yield)


@contextmanager
def _turn(folder: Path, *, alone: bool) -> Generator[None]:
    """Hold the right to run, alone or beside others.

    A test that must be alone holds the entrance lock while it waits, so that no new test begins.
    """
    with open(folder / "entrance.lock", "w") as entrance, open(folder / "running.lock", "w") as running:
        _lock(entrance, fcntl.LOCK_EX)
        _lock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(entrance, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(running, fcntl.LOCK_UN)  # a process that the test forked may hold the file open


def _lock(file: TextIO, kind: int) -> None:
    """Wait for a lock, at most as long as several tests may take."""
    deadline = time.monotonic() + _TURN_SECONDS
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                pytest.exit(f"no turn within {_TURN_SECONDS:.0f} s: another process holds {file.name}")
            time.sleep(0.005)
        else:
            return
