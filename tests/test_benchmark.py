"""The benchmark: its arithmetic, its report of absent peers, and a small run. No test asserts its figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supdist.tools.benchmark import figures
from supdist.tools.benchmark.metrics import METRICS, OURS, Goal, Metric, chosen
from supdist.tools.benchmark.peers import PEERS
from supdist.tools.benchmark.report import Series, as_markdown, as_text, rows
from supdist.tools.benchmark.rounds import available, measure
from supdist.tools.benchmark.subjects import Scale, Subject, Trial

VALUES = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=50)
QUICK = Scale(quick=True)


@given(VALUES, st.floats(0, 1))
def test_a_quantile_lies_among_its_values_and_rises_with_its_part(values: list[float], part: float) -> None:
    assert min(values) <= figures.quantile(values, 0) <= figures.quantile(values, part) * (1 + 1e-9)
    assert figures.quantile(values, part) <= figures.quantile(values, 1) * (1 + 1e-9)
    assert figures.quantile(values, 1) == max(values)


def test_spread_and_ratio_of_known_values() -> None:
    assert figures.spread([4, 1, 3, 2, 5]) == figures.Spread(median=3, low=2, high=4, count=5)
    assert figures.quantile([1, 2], 0.5) == 1.5
    # A machine that became ten times slower for a round: the ratio of the medians would be 10 / 20.
    assert figures.ratio([1, 10, 1], [20, 20, 2]) == 0.5
    assert figures.ratio([1, 2, 3], [2]) == 0.5
    assert figures.ratio([1], []) is None
    assert figures.ratio([1], [0]) is None
    with pytest.raises(ValueError, match="at least one"):
        figures.quantile([], 0.5)


@given(VALUES, VALUES, st.floats(0.01, 100))
def test_a_machine_that_slows_both_down_does_not_change_the_ratio(
    ours: list[float], theirs: list[float], factor: float
) -> None:
    rounds = min(len(ours), len(theirs))
    before = figures.ratio(ours[:rounds], theirs[:rounds])
    slow = [value * (factor if place % 2 else 1) for place, value in enumerate(ours[:rounds])]
    slow_too = [value * (factor if place % 2 else 1) for place, value in enumerate(theirs[:rounds])]
    assert figures.ratio(slow, slow_too) == pytest.approx(before)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.012345, "0.0123"), (1, "1.00"), (12.345, "12.3"), (1234.5, "1,234"), (-56.78, "-56.8")],
)
def test_figures_are_shown_with_three_digits(value: float, text: str) -> None:
    assert figures.shown(value) == text


METRIC = Metric(
    "m", "thing", "ms", 3, 1, (Goal("", 2), Goal("", 0.5, peer="peer"), Goal("full", 1.1, than=""))
)
RECORDS = {
    Series("m", "", OURS): [1.0, 3.0, 1.0],
    Series("m", "", "peer"): [4.0, 4.0, 1.0],
    Series("m", "full", OURS): [1.0, 6.0, 1.2],
    Series("other", "", OURS): [1.0],
}


def test_goals_are_judged_by_medians_and_by_ratios_of_rounds() -> None:
    ours, peer, full = rows([METRIC], RECORDS)
    assert (ours.spread.median, ours.ratio, ours.goal, ours.met) == (1.0, None, "≤ 2 ms", True)
    assert (peer.ratio, peer.goal, peer.met) == (0.75, "≤ 0.5 of it", False)
    assert full.ratio == pytest.approx(1.2)
    assert full.met is False
    assert Goal("", 80, at_least=True).is_met(81)
    assert not Goal("", 80, at_least=True).is_met(79)


def test_the_table_aligns_and_markdown_has_the_same_cells() -> None:
    lines = rows([METRIC], RECORDS)
    text = as_text([METRIC], lines).splitlines()
    place = text[0].index("goal")
    assert [line[place : place + 1] for line in text[1:]] == ["≤", "≤", "≤"]
    assert [line[:8] for line in text[1:]] == ["thing   ", "  peer  ", "thing fu"]
    markdown = as_markdown([METRIC], lines).splitlines()
    assert len(markdown) == len(text) + 1
    assert all(line.count("|") == 9 for line in markdown)


def test_every_goal_is_about_a_peer_that_is_there_and_metrics_are_chosen_by_name() -> None:
    peers = {peer().name for peer in PEERS}
    for metric in METRICS:
        for goal in metric.goals:
            assert not goal.peer or goal.peer in peers
    assert [metric.name for metric in chosen(["worker", "open"])] == ["open", "worker"]
    assert chosen([]) == list(METRICS)
    with pytest.raises(ValueError, match="choose from floor, open"):
        chosen(["speed"])


class Counted(Subject):
    """Says when it is asked."""

    def __init__(self, name: str, asked: list[str], fails_in: int = -1) -> None:
        self.name = name
        self._asked = asked
        self._fails_in = fails_in

    def trial(self, metric: str, scale: Scale) -> AbstractContextManager[Trial] | None:
        return self._trial() if metric == "m" else None

    @contextmanager
    def _trial(self) -> Generator[Trial]:
        def ask() -> dict[str, float]:
            if self._asked.count(self.name) == self._fails_in:
                raise OSError("broken")
            self._asked.append(self.name)
            return {"": float(len(self._asked))}

        self._asked.append("enter " + self.name)
        yield ask
        self._asked.append("leave " + self.name)


def test_subjects_take_turns_and_one_that_fails_is_left_out() -> None:
    asked: list[str] = []
    told: list[str] = []
    subjects = [Counted(OURS, asked), Counted("peer", asked, fails_in=1)]
    found = measure(METRIC, subjects, QUICK, 3, told.append)
    assert asked == [
        f"enter {OURS}", "enter peer", OURS, "peer", OURS, OURS, "leave peer", f"leave {OURS}",
    ]  # fmt: skip
    assert {series.subject: len(values) for series, values in found.items()} == {OURS: 3, "peer": 1}
    assert told == ["m: peer failed: OSError('broken')"]
    with pytest.raises(OSError, match="broken"):
        measure(METRIC, [Counted(OURS, [], fails_in=0)], QUICK, 1, told.append)


def test_absent_peers_are_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    told: list[str] = []
    names = [subject.name for subject in available([peer() for peer in PEERS], told.append)]
    assert names == ["python -I -c"]
    assert told == [
        "without bwrap python -I -c: apt install bubblewrap",
        "without docker run python -c: start a docker daemon, and name it in DOCKER_HOST",
        "without ipykernel: pip install ipykernel jupyter_client",
        "without rlm local: pip install rlms",
        "without rlm ipython: pip install rlms ipykernel jupyter_client",
        "without smolagents local: pip install smolagents",
    ]


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "supdist.tools.benchmark", *arguments],
            check=False,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "COLUMNS": "200"},
        )

    return run


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_a_quick_run_writes_what_it_found(command: Command, tmp_path: Path) -> None:
    done = command("--quick", "--only", "execute, floor", "--json", "found.json", "--plots", "plots")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["isolation"]["seccomp"] is True
    of_ours = [result for result in found["results"] if result["subject"] == OURS]
    assert [(result["metric"], len(result["rounds"])) for result in of_ours] == [("execute", 3)]
    assert of_ours[0]["low"] <= of_ours[0]["median"] <= of_ours[0]["high"]
    assert {result["variant"] for result in found["results"] if result["metric"] == "floor"} == {
        "socketpair",
        "ZeroMQ, ipc, DEALER and ROUTER",
    }
    assert "execute" in done.stdout
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["execute.svg", "floor.svg"]


@pytest.mark.slow
def test_every_metric_of_ours_can_be_measured(command: Command, tmp_path: Path) -> None:
    """One round of each that is not shared with peers, or is asked of ours in another way."""
    names = "worker,beside,cycle,memory,density,stop,live,cpu"
    done = command("--quick", "--rounds", "1", "--only", names, "--json", "found.json", "--markdown")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    of_ours = [result for result in results if result["subject"] == OURS]
    assert list(dict.fromkeys(result["metric"] for result in of_ours)) == names.split(",")
    # Init has no part in worker calls, and may not have run at all.
    assert all(result["median"] > 0 for result in of_ours if not result["variant"].endswith("init"))
    assert "| worker call |" in done.stdout


def test_the_command_imports_nothing_heavy_before_it_runs() -> None:
    code = (
        "import sys, supdist.tools.benchmark.command; print({'zmq', 'pydantic', 'asyncio'} &"
        " set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "set()\n"


def test_a_wrong_name_is_said(command: Command) -> None:
    done = command("--only", "speed")
    assert done.returncode == 2
    assert "choose from floor, open" in done.stderr
