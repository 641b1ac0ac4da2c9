"""What an experiment shows while it runs."""

from __future__ import annotations

import pytest
from results_support import record

from supdist.tools.evals.progress import progress
from supdist.tools.evals.records import Failure

DEAD = Failure(stage="run", type="Unreachable", message="connection refused")


def test_a_dead_endpoint_is_three_lines_not_fifty(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(quiet=False) as observer:
        observer.begin(51, [])
        for index in range(50):
            observer.ended(record(index, right=None, error=DEAD))
        observer.ended(record(50, right=None, error=DEAD.model_copy(update={"message": "no such model"})))
    lines = [line for line in capsys.readouterr().err.splitlines() if " failed: " in line]
    assert lines == [
        "q0 failed: Unreachable: connection refused",
        "q1 failed: Unreachable: connection refused",
        "q2 failed: Unreachable: connection refused; more of these are only counted",
        "q50 failed: Unreachable: no such model",
    ]


def test_a_dumb_terminal_gets_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with progress(quiet=False) as observer:
        observer.begin(1, [])
        observer.ended(record(0))
    assert "1/1 · 100% right" in capsys.readouterr().err
