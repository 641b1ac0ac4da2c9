"""Tasks by name: those that ship, those of other packages, and what is told of options that do not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supdist.tasks.base import TaskDataError
from supdist.tasks.needle import Needle
from supdist.tasks.registry import create, describe, names

OURS = ["jsonl", "needle", "oolong", "pairs", "qasper"]


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package, installed with entry points; its module leaves a mark where it is imported."""
    (tmp_path / "other_tasks.py").write_text(
        """
from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from supdist.tasks.base import Ask, Example, Score, Task

Path(__file__).with_name("imported").touch()

@dataclass(frozen=True, slots=True)
class Contracts(Task):
    '''Questions about contracts.

    And more.'''

    name: ClassVar[str] = "contracts"
    pages: int = 3
    flag: bool = False

    def examples(self) -> Sequence[Example]:
        return [Example(f"page-{page}", "?") for page in range(self.pages)]

    def context(self, example: Example) -> str:
        return ""

    async def score(self, example: Example, answer: str | None, judge: Ask | None = None) -> Score:
        return Score(0, False, {})

    def data_hash(self) -> str:
        return str(self.pages)

class Plain(Task):
    pass
"""
    )
    (tmp_path / "broken_tasks.py").write_text("import no_such_module")
    for package, points in {
        "other": "contracts = other_tasks:Contracts\nneedle = other_tasks:Contracts\n"
        "no-task = other_tasks:Path\nplain = other_tasks:Plain",
        "broken": "broken = broken_tasks:X\ntwice = other_tasks:Contracts",
        "again": "twice = other_tasks:Contracts",
    }.items():
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[supdist_engine.tasks]\n{points}\n")
    monkeypatch.syspath_prepend(tmp_path)  # pyright: ignore[reportUnknownMemberType]  # pytest types it in part


def test_what_ships_is_listed_and_can_be_made(tmp_path: Path) -> None:
    assert set(OURS) <= set(names())
    for name in OURS:
        assert create(name, {"path": str(tmp_path)} if name == "jsonl" else {}).name == name


def test_texts_of_a_command_line_become_what_an_option_is() -> None:
    task = create("needle", {"variant": "multi-key", "length": "128k", "n": "7", "depth": "0.5"})
    assert task == Needle(variant="multi-key", length=128_000, n=7, depth=0.5)
    assert create("oolong", {"length": "1.5M"}) == create("oolong", {"length": 1_500_000})
    qasper: Any = create("qasper", {"path": "a.json", "hint": "no"})
    assert (qasper.path, qasper.hint) == (Path("a.json"), False)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("needel", {}, "there is no task 'needel'; did you mean 'needle'"),
        ("zzz", {}, "known are .*jsonl, needle, oolong, pairs, qasper"),
        ("needle", {"lenght": "1k"}, "task needle has no option 'lenght'; did you mean 'length'"),
        ("needle", {"zzz": "1k"}, "no option 'zzz'; known are variant, length"),
        ("needle", {"length": "long"}, "task needle: length: must be a number of tokens"),
        ("needle", {"length": "20M"}, "length: .*less than or equal to 10000000"),
        ("needle", {"length": "10"}, "length: .*greater than or equal to 1000"),
        ("needle", {"variant": "x", "n": 0}, "variant: .*'single'.*; n: "),
        (
            "oolong",
            {"length": "abc"},
            "length: must be a number of tokens, such as 32k, .*, not 'abc'",
        ),
        ("jsonl", {}, "path is missing; give it, as -T path=FILE"),
        ("jsonl", {"path": "a", "metric": "bleu"}, "metric: "),
        ("qasper", {"distractors": "-1"}, "distractors: "),
    ],
)
def test_what_does_not_fit_is_told(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskDataError, match=message):
        create(name, options)


def test_options_are_described() -> None:
    found = describe("needle")
    options = {option.name: option for option in found.options}
    assert found.summary.startswith("Find numbers")
    assert list(options)[:2] == ["variant", "length"]
    assert options["variant"].type == "single|multi-key|multi-value|multi-query|variable-tracking|all"
    assert (options["length"].type, options["length"].default) == ("int", "32000")
    assert (options["depth"].type, options["depth"].default) == ("number", "null")
    path, _, metric = describe("jsonl").options
    assert (path.type, path.default, metric.type, metric.default) == (
        "path",
        None,
        "exact|f1|contains|choice|judge",
        '"f1"',
    )
    assert {option.name: option.type for option in describe("qasper").options}["path"] == "path"
    for name in OURS:
        assert all(option.help for option in describe(name).options), name


@pytest.mark.usefixtures("others")
def test_other_packages_tasks_are_listed_without_being_imported(tmp_path: Path) -> None:
    assert {"contracts", "broken", *OURS} <= set(names())
    assert not (tmp_path / "imported").exists()


@pytest.mark.usefixtures("others")
def test_other_packages_tasks_are_made_and_described() -> None:
    task = create("contracts", {"pages": "2", "flag": "true"})
    assert [each.id for each in task.examples()] == ["page-0", "page-1"]
    assert task.wants_judge is False
    found = describe("contracts")
    assert (found.summary, [(option.name, option.type, option.default) for option in found.options]) == (
        "Questions about contracts.",
        [("pages", "int", "3"), ("flag", "yes|no", "false")],
    )
    with pytest.raises(TaskDataError, match="did you mean 'pages'"):
        create("contracts", {"page": 2})
    with pytest.raises(TaskDataError, match="task contracts: pages: "):
        create("contracts", {"pages": "x"})


@pytest.mark.usefixtures("others")
def test_a_package_cannot_take_a_name_that_ships_and_its_faults_are_its_own() -> None:
    assert create("needle", {}).name == "needle"
    with pytest.raises(TaskDataError, match=r"'broken' of broken cannot be imported: .*no_such_module"):
        create("broken")
    with pytest.raises(TaskDataError, match=r"'no-task' of other: .* is no subclass of Task"):
        create("no-task")
    with pytest.raises(TaskDataError, match=r"'plain' of other: .* neither a pydantic model nor a dataclass"):
        create("plain")
    with pytest.raises(TaskDataError, match="more than once, by again and broken"):
        create("twice")


def test_listing_imports_no_task() -> None:
    code = (
        "import sys; from supdist.tasks.registry import names; print(names());"
        "print([m for m in sys.modules if m.startswith('supdist.tasks.') and m.rpartition('.')[2] in"
        " names()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[1] == "[]"
