"""What a killed process leaves in a temporary folder, the next one removes, and nothing else."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from supdist.engine.sandbox.owned_folders import make_owned_folder, sweep
from supdist.engine.sandbox.owner import current_owner

MAKE = "import sys; from supdist.engine.sandbox.owned_folders import make_owned_folder as make\n"


def left_by_a_dead_process(place: Path) -> Path:
    code = MAKE + "print(make('thing', sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, place], check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())


def test_the_next_of_a_kind_removes_what_dead_processes_left(tmp_path: Path) -> None:
    dead = left_by_a_dead_process(tmp_path)
    (dead / "deep").mkdir()
    (dead / "deep/file").write_text("x")
    make_owned_folder("other", str(tmp_path))
    assert dead.exists(), "of another kind"
    own = make_owned_folder("thing", str(tmp_path))
    assert not dead.exists()
    make_owned_folder("thing", str(tmp_path))
    assert os.path.isdir(own), "its owner lives"


def test_no_link_is_followed_and_no_other_users_folder_is_touched(tmp_path: Path) -> None:
    dead, kept = left_by_a_dead_process(tmp_path), tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    dead.rmdir()
    dead.symlink_to(kept)
    inside, foreign = left_by_a_dead_process(tmp_path), left_by_a_dead_process(tmp_path)
    assert not inside.exists(), "removed by the second"
    (foreign / "link").symlink_to(kept)
    sweep("thing", str(tmp_path))
    assert (kept / "file").exists()
    assert not foreign.exists()
    assert dead.is_symlink()
    if os.geteuid() == 0:
        foreign = left_by_a_dead_process(tmp_path)
        os.chown(foreign, 1234, 1234)
        sweep("thing", str(tmp_path))
        assert foreign.exists()


@pytest.mark.parametrize("owner", ["", "x", "a+b+c+d", "..", "this process"])
def test_a_folder_without_a_dead_owner_stays(owner: str, tmp_path: Path) -> None:
    if owner == "this process":
        owner = current_owner().replace(":", "+")
    folder = tmp_path / f"supdist-thing-{owner}-abc"
    folder.mkdir()
    sweep("thing", str(tmp_path))
    assert folder.exists()


def test_very_many_names_take_no_long_time(tmp_path: Path) -> None:
    for number in range(20_000):
        (tmp_path / f"supdist-other-{number}").touch()
    started = time.process_time()
    sweep("thing", str(tmp_path))
    assert time.process_time() - started < 1


LOOP = MAKE + "print('ready', flush=True)\nwhile True: make('thing', sys.argv[1])"


def test_killed_at_any_moment_a_process_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    dice = random.Random(19)
    for _ in range(5):
        maker = subprocess.Popen([sys.executable, "-c", LOOP, tmp_path], stdout=subprocess.PIPE)
        assert maker.stdout is not None
        with maker.stdout:
            maker.stdout.readline()
            time.sleep(dice.random() * 0.02)
            maker.kill()
            maker.wait()
    while len(os.listdir(tmp_path)) > 0:
        before = len(os.listdir(tmp_path))
        sweep("thing", str(tmp_path))
        assert len(os.listdir(tmp_path)) < before
