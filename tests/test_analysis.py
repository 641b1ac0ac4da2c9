"""What runs come to: the table, the differences, and folders that are no finished runs."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from results_support import failed, record, write_run
from support import REPOSITORY

from supdist.engine.private_files import MAX_LINE_BYTES
from supdist.sandbox_image.text import one_line
from supdist.tools.evals import analyze_cli
from supdist.tools.evals.analysis import Analysis, analyse
from supdist.tools.evals.records import EXAMPLES, MAX_CONFIG_BYTES, RECORDS, Failure, Record, Tokens
from supdist.tools.evals.report import PAIRS, RUNS, SHORT, run_fields
from supdist.tools.tables import Table, as_csv, as_markdown, as_text, table

TABLE = """\
Supervisor                         | Worker                           |   Accuracy | Avg Steps | Total Steps |  Sup In | Sup Out |  Wrk In | Wrk Out
-----------------------------------+----------------------------------+------------+-----------+-------------+---------+---------+---------+--------
Qwen3-235B-A22B-Instruct-2507-tput | Meta-Llama-3.1-8B-Instruct-Turbo | 40% (8/20) |       6.0 |         121 | 243,669 |  19,505 | 210,288 |  18,265
Llama-3.3-70B-Instruct-Turbo       | Qwen2.5-7B-Instruct-Turbo        | 20% (4/20) |       3.5 |          71 |  58,555 |  10,732 | 130,933 | 190,699"""  # noqa: E501 - the table as it is printed


def spread(total: int, over: int = 20) -> list[int]:
    """Divide a total into numbers that are as equal as possible."""
    return [total // over + (index < total % over) for index in range(over)]


def reference_run(folder: Path, supervisor: str, worker: str, right: int, totals: Sequence[int]) -> Path:
    steps, *tokens = (spread(total) for total in totals)
    return write_run(
        folder,
        [
            record(
                index,
                right=index < right,
                steps=steps[index],
                supervisor_model=supervisor,
                worker_model=worker,
                supervisor=Tokens(input=tokens[0][index], output=tokens[1][index]),
                worker=Tokens(input=tokens[2][index], output=tokens[3][index]),
            )
            for index in range(20)
        ],
    )


def two_runs(folder: Path) -> None:
    reference_run(
        folder / "20260211-163519",
        "Qwen/Qwen3-235B-A22B-Instruct-2507-tput",
        "meta-llama/Meta-Llama-3.1-8B-Instruct-Turbo",
        8,
        (121, 243_669, 19_505, 210_288, 18_265),
    )
    reference_run(
        folder / "20260211-170952",
        "meta-llama/Llama-3.3-70B-Instruct-Turbo",
        "Qwen/Qwen2.5-7B-Instruct-Turbo",
        4,
        (71, 58_555, 10_732, 130_933, 190_699),
    )


def command(*arguments: str | Path, script: bool = False) -> subprocess.CompletedProcess[str]:
    program = [str(REPOSITORY / "tools/analysis.py")] if script else ["-m", "supdist.tools.analysis"]
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def cell(found: Analysis, title: str, row: int = 0) -> str:
    whole = table(RUNS, found.figures)
    return whole.rows[row][list(whole.titles).index(title)]


# The table


@pytest.mark.parametrize("script", [False, True])
def test_the_short_table_is_the_one_that_is_described(tmp_path: Path, script: bool) -> None:
    two_runs(tmp_path)
    done = command(tmp_path, "--short", script=script)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip("\n") == TABLE


def test_the_whole_table_begins_with_the_short_one(tmp_path: Path) -> None:
    two_runs(tmp_path)
    whole, pairs = command(tmp_path).stdout.rstrip("\n").split("\n\n")
    assert [line[: len(TABLE.splitlines()[0])] for line in whole.splitlines()[2:]] == TABLE.splitlines()[2:]
    assert "\n20260211-163519 | 20260211-170952 |" in pairs


def test_named_runs_are_shown_once_and_in_their_order(tmp_path: Path) -> None:
    two_runs(tmp_path)
    found = analyse([tmp_path / "20260211-170952", tmp_path, tmp_path / "20260211-163519"])
    assert [figures.run for figures in found.figures] == ["20260211-170952", "20260211-163519"]
    assert found.notes == []


def test_runs_of_one_name_are_told_apart_by_what_is_above_them(tmp_path: Path) -> None:
    for task in ("qasper", "needle"):
        write_run(tmp_path / task / "20260211-163519", [record(0)], task=task)
    names = [figures.run for figures in analyse([tmp_path]).figures]
    assert names == ["needle/20260211-163519", "qasper/20260211-163519"]


def test_the_figures_by_hand(tmp_path: Path) -> None:
    """Of four examples one failed: its steps and tokens were spent, but it is neither right nor wrong."""
    examples = [
        record(0, right=True, score=0.8, kind="a", metrics={"answer_f1": 0.8, "f1": 0.1, "judge": 1.0}),
        record(1, right=False, score=0.2, kind="b", metrics={"answer_f1": 0.2, "judge": 0.0}),
        record(2, right=True, score=0.4, kind="a", stop_reason="max_iterations",
            metrics={"answer_f1": 0.4, "judge": 1.0}),
        failed(3),
    ]  # fmt: skip
    found = analyse([write_run(tmp_path, examples, strategy="supervisor")])
    assert cell(found, "Accuracy") == "67% (2/3)"
    assert cell(found, "Accuracy 95%") == "21% to 94%"
    assert (cell(found, "Avg Steps"), cell(found, "Total Steps")) == ("3.0", "12")
    assert (cell(found, "Sup In"), cell(found, "Wrk Out")) == ("400", "20")
    assert cell(found, "F1") == cell(found, "Score") == "0.467"
    assert cell(found, "Dollars") == "0.0480"
    assert cell(found, "Avg Seconds") == "2.0"
    assert cell(found, "Stop Reasons") == "final 2, max_iterations 1"
    assert cell(found, "Failed") == "1"
    assert cell(found, "Judge = F1") == "67% of 3"
    assert run_fields(found.figures[0])["judge_f1_auc"] == 1.0
    assert run_fields(found.figures[0])["kinds"] == {"a": pytest.approx(0.6), "b": 0.2}
    assert [note.split(": ", 1)[1] for note in found.notes] == [
        "1 failed and have no score (run: Unavailable 1)"
    ]


def test_a_failed_judge_is_told_apart_from_a_missing_score(tmp_path: Path) -> None:
    unjudged = record(
        1, right=None, score=0.5, error=Failure(stage="score", type="JudgeError", message="no verdict")
    )
    found = analyse([write_run(tmp_path / "a", [record(0), unjudged])])
    assert [note.split(": ", 1)[1] for note in found.notes] == [
        "1 failed and have no verdict (score: JudgeError 1)"
    ]
    found = analyse([write_run(tmp_path / "b", [record(0), unjudged, failed(2)])])
    assert found.notes[0].endswith(
        "2 failed and 1 of them have no score (score: JudgeError 1, run: Unavailable 1)"
    )


def test_a_price_that_is_unknown_makes_the_dollars_unknown(tmp_path: Path) -> None:
    found = analyse([write_run(tmp_path, [record(0), record(1, worker=Tokens(cost_usd=None))])])
    assert cell(found, "Dollars") == "?"
    assert run_fields(found.figures[0])["cost_usd"] is None


def test_a_run_without_verdicts_has_a_score_and_no_accuracy(tmp_path: Path) -> None:
    found = analyse([write_run(tmp_path, [record(0, right=None, score=0.5)])])
    assert (cell(found, "Accuracy"), cell(found, "Accuracy 95%")) == ("-", "-")
    assert (cell(found, "Score"), cell(found, "Judge = F1")) == ("0.500", "-")


# Differences


def test_a_difference_is_over_the_shared_examples_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [record(index, right=index < 6) for index in range(8)])
    write_run(tmp_path / "b", [record(index, right=index < 1) for index in range(1, 9)])
    found = analyse([tmp_path])
    (pair,) = found.pairs
    row = dict(zip(table(PAIRS, found.pairs).titles, table(PAIRS, found.pairs).rows[0], strict=True))
    assert (row["Run"], row["Minus"], row["Shared"]) == ("a", "b", "7")
    assert (row["Accuracy"], row["Right Alone"], row["McNemar p"]) == ("+71%", "5 : 0", "0.062")
    assert pair.accuracy is not None
    assert pair.accuracy.interval.low > 0


def test_values_that_are_all_equal_have_no_interval(tmp_path: Path) -> None:
    """Resampling would give one of no width, out of a single example even."""
    for name in "ab":
        write_run(tmp_path / name, [record(0)])
    found = analyse([tmp_path])
    assert (cell(found, "Score"), cell(found, "Score 95%")) == ("1.000", "-")
    assert cell(found, "Accuracy 95%") == "21% to 100%"
    assert table(PAIRS, found.pairs).rows[0][3:5] == ["+0%", "-"]
    assert run_fields(found.figures[0])["score_low"] is None


@pytest.mark.parametrize(
    "other",
    [{"task": "needle"}, {"provenance": {"data_hash": "e", "sample": ["q0"]}}],
    ids=["task", "data"],
)
def test_other_tasks_and_other_data_are_not_compared(tmp_path: Path, other: dict[str, Any]) -> None:
    write_run(tmp_path / "a", [record(0)])
    write_run(tmp_path / "b", [record(0)], **other)
    assert analyse([tmp_path]).pairs == []


def test_examples_of_one_name_but_another_question_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [record(0)])
    write_run(tmp_path / "b", [record(0, query="another")])
    assert analyse([tmp_path]).pairs == []


def test_a_failed_example_is_in_no_difference(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [record(0), failed(1)])
    write_run(tmp_path / "b", [record(0), record(1)])
    (pair,) = analyse([tmp_path]).pairs
    assert pair.shared == 2
    assert pair.accuracy is not None
    assert pair.accuracy.n == 1


# Folders that are no finished runs


def test_a_live_run_counts_what_has_ended_and_tells_the_rest(tmp_path: Path) -> None:
    folder = write_run(tmp_path, [record(0), record(1)], planned=5)
    with open(folder / RECORDS, "a", encoding="utf-8") as lines:
        lines.write(record(2).model_dump_json()[:40])
    for example in ("q0", "q1", "q2"):
        (folder / EXAMPLES / example).mkdir(parents=True)
    found = analyse([folder])
    assert cell(found, "Accuracy") == "100% (2/2)"
    assert cell(found, "Sup In") == "200"
    assert found.notes == [
        f"{folder.name}: 2 of 5 examples have ended, 1 more were begun and count when they end"
    ]


@given(data=st.data())
def test_a_log_cut_anywhere_is_read_as_far_as_it_goes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = write_run(tmp_path_factory.mktemp("run"), [record(0), record(1), record(2)])
    whole = (folder / RECORDS).read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    (folder / RECORDS).write_bytes(whole[:cut])
    # A line that lacks its end alone is whole all the same.
    ended = whole[: cut + 1].count(b"\n")
    found = analyse([folder])
    assert found.figures[0].examples == ended
    assert len(found.notes) == (ended < 3)


def test_a_run_that_has_just_begun_is_a_row_of_nothing(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path, [], planned=5, strategy="direct", supervisor={"handler": "openai", "model": "x/y"}
    )
    (folder / RECORDS).unlink()
    found = analyse([folder])
    assert (cell(found, "Supervisor"), cell(found, "Worker"), cell(found, "Strategy")) == ("y", "-", "direct")
    assert (cell(found, "Accuracy"), cell(found, "Avg Steps")) == ("-", "-")
    assert found.notes == [f"{folder.name}: 0 of 5 examples have ended"]


def test_an_example_that_was_run_again_counts_once(tmp_path: Path) -> None:
    found = analyse([write_run(tmp_path, [failed(0), record(0)], planned=1)])
    assert (cell(found, "Accuracy"), cell(found, "Failed")) == ("100% (1/1)", "0")
    assert found.notes == []


def test_places_that_are_no_runs_are_told_and_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [record(0)])
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    done = command(tmp_path / "run", tmp_path / "empty", tmp_path / "nowhere", tmp_path / "file")
    assert done.returncode == 0
    assert "empty: no run in it\n" in done.stderr
    assert "nowhere: no such folder\n" in done.stderr
    assert "file: it is a file, not the folder of a run\n" in done.stderr


def test_without_any_run_it_says_what_a_run_is(tmp_path: Path) -> None:
    done = command(tmp_path)
    assert done.returncode == 2
    assert "config.json" in done.stderr
    nowhere = command(tmp_path / "nowhere")
    assert nowhere.stderr.count("no such folder") == 1
    assert "no run" not in nowhere.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "config", ["", "[1]", "{" * 100_000, '{"task": 3, "seed": "x", "provenance": [], "strategy": {}}']
)
def test_settings_that_cannot_be_read_spoil_nothing_else(tmp_path: Path, config: str) -> None:
    folder = write_run(tmp_path, [record(0)])
    (folder / "config.json").write_text(config)
    found = analyse([folder])
    assert cell(found, "Accuracy") == "100% (1/1)"
    assert cell(found, "Strategy") == "supervisor"


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path, [record(0)])
    with open(folder / RECORDS, "ab") as lines:
        lines.write(b'{"index": 1}\n\xff\xfe\n\n')
    assert analyse([folder]).notes == [f"{folder.name}: lines of results.jsonl that are no records: 2"]


def test_files_without_an_end_are_not_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path, [record(0)])
    with open(folder / RECORDS, "wb") as lines:
        lines.truncate(MAX_LINE_BYTES + 1)
    with open(folder / "config.json", "wb") as config:
        config.truncate(MAX_CONFIG_BYTES + 1)
    notes = analyse([folder]).notes
    assert "config.json cannot be read" in notes[0]
    assert "a line is longer than 256 MiB" in notes[1]


def test_a_link_in_a_circle_ends(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [record(0)])
    (tmp_path / "again").symlink_to(tmp_path)
    assert len(analyse([tmp_path]).runs) == 1


# Names are others' text

HOSTILE = "maker/\x1b]0;title\x07\x1b[2J|=1+1\n\u202e<b>*x*`"


@pytest.mark.slow
def test_no_name_reaches_a_terminal_as_it_is(tmp_path: Path) -> None:
    write_run(tmp_path / "a\x1b[31m", [record(0, supervisor_model=HOSTILE, stop_reason="\x1b[2J")])
    write_run(tmp_path / "b", [record(0)])
    for form in ([], ["--short"], ["--markdown"], ["--csv"], ["--json"], ["--pairs"], ["--pairs", "--csv"]):
        done = command(tmp_path, tmp_path / "\x1b[2Jnone", *form)
        shown = done.stdout + done.stderr
        assert done.returncode == 0, shown
        assert one_line(shown.replace("\n", "")) == shown.replace("\n", "")


def test_markup_in_a_name_stays_text_in_markdown(tmp_path: Path) -> None:
    found = analyse([write_run(tmp_path, [record(0, supervisor_model="a|b*c*<i>[x](y)`")])])
    titles, rule, row = as_markdown(table(SHORT, found.figures)).splitlines()
    assert row.startswith(r"| a\|b\*c\*\<i\>\[x\](y)\` | small |")
    assert titles.count("|") == rule.count("|") == row.replace(r"\|", "").count("|")


def test_a_name_is_no_formula_in_a_spreadsheet() -> None:
    text = as_csv([{"model": "=HYPERLINK(1)", "value": -1.5, "note": "@x", "plain": "a,b"}])
    assert list(csv.reader(io.StringIO(text)))[1] == ["'=HYPERLINK(1)", "-1.5", "'@x", "a,b"]


# Other forms


def test_json_and_csv_say_the_same_and_can_be_read_back(tmp_path: Path) -> None:
    two_runs(tmp_path)
    whole = json.loads(command(tmp_path, "--json").stdout)
    rows = list(csv.DictReader(io.StringIO(command(tmp_path, "--csv").stdout)))
    assert len(whole["runs"]) == len(rows) == 2
    for data, row in zip(whole["runs"], rows, strict=True):
        assert {name: _text(value) for name, value in data.items()} == row
    assert whole["runs"][0]["accuracy"] == 0.4
    assert whole["runs"][0]["supervisor_model"] == "Qwen/Qwen3-235B-A22B-Instruct-2507-tput"
    (pair,) = whole["pairs"]
    (line,) = csv.DictReader(io.StringIO(command(tmp_path, "--csv", "--pairs").stdout))
    assert {name: _text(value) for name, value in pair.items()} == line
    assert pair["accuracy_difference"] == pytest.approx(0.2)


def _text(value: object) -> str:
    return "" if value is None else json.dumps(value) if isinstance(value, dict) else str(value)


def test_markdown_has_the_cells_of_the_table(tmp_path: Path) -> None:
    two_runs(tmp_path)
    lines = command(tmp_path, "--markdown", "--short").stdout.splitlines()
    cells = [[part.strip() for part in line.strip("|").split(" | ")] for line in lines]
    plain = [[part.strip() for part in line.split(" | ")] for line in TABLE.splitlines()]
    assert [cells[0], *cells[2:]] == [plain[0], *plain[2:]]
    assert cells[1] == ["---", "---", *["---:"] * 7]


def test_two_forms_at_once_are_refused(tmp_path: Path) -> None:
    done = command(tmp_path, "--csv", "--json")
    assert done.returncode == 2
    assert "exclude each other" in done.stderr


def test_no_pairs_to_show_is_said(tmp_path: Path) -> None:
    assert "no two" in command(write_run(tmp_path, [record(0)]), "--pairs").stdout


# Layout

words = st.text(st.characters(exclude_categories=["C", "Z", "Mn", "Me"]), min_size=1, max_size=30)


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.tuples(
            st.lists(words, min_size=n, max_size=n),
            st.lists(st.lists(words, min_size=n, max_size=n), max_size=4),
            st.lists(st.booleans(), min_size=n, max_size=n),
        )
    ),
    st.none() | st.integers(1, 120),
    st.integers(1, 2),
)
def test_columns_align_and_fit_whatever_is_in_them(
    cells: tuple[list[str], list[list[str]], list[bool]], width: int | None, keys: int
) -> None:
    from rich.cells import cell_len

    titles, rows, left = cells
    bands = as_text(Table(titles, left, rows, range(min(keys, len(titles)))), width).split("\n\n")
    for band in bands:
        lines = band.split("\n")
        rule = cell_len(lines[1])
        assert len(lines) == len(rows) + 2
        assert all(cell_len(line) <= rule for line in lines)
        assert width is None or rule <= max(width, 20)


def test_a_narrow_terminal_gets_the_columns_below_each_other_with_the_run(tmp_path: Path) -> None:
    two_runs(tmp_path)
    whole = table(RUNS, analyse([tmp_path]).figures, ["Run"])
    bands = as_text(whole, 80).split("\n\n")
    assert all(band.startswith("Run ") and band.count("20260211-170952") == 1 for band in bands)
    shown = [title.strip() for band in bands for title in band.splitlines()[0].split(" | ")[1:]]
    assert shown == [title for title in whole.titles if title != "Run"]
    assert "Qwen3-235B-A22B-Instruct-2507-tput" in bands[0]


# Plots


def plotted(folder: Path, runs: Path) -> list[str]:
    from supdist.tools.evals.plots import plot

    return plot(analyse([runs]), folder)


@pytest.mark.slow
def test_plots_have_their_marks_axes_and_legends(tmp_path: Path) -> None:
    names = ["_under", "$\\frac{", "<a&b>", "中文", "\x1b[2J", "x" * 300, "a", "b", "c"]
    for number, name in enumerate(names):
        examples = [
            record(index, right=index % (number + 2) == 0, steps=number + 1, supervisor_model=f"maker/{name}")
            for index in range(20)
        ]
        write_run(tmp_path / "runs" / str(number), examples)
    done = command(tmp_path / "runs", "--plots", tmp_path / "plots", "--short")
    assert done.returncode == 0, done.stderr
    for name, title in (("cost", "Dollars"), ("steps", "Steps"), ("context", "Characters")):
        png, svg = (tmp_path / "plots" / f"accuracy-{name}.{suffix}" for suffix in ("png", "svg"))
        assert png.read_bytes().startswith(b"\x89PNG")
        texts = [
            "".join(node.itertext())
            for node in ET.fromstring(svg.read_text("utf-8")).iter()
            if node.tag.endswith("}text")
        ]
        assert any(text.startswith(title) for text in texts)
        assert "Accuracy" in texts
        for label in (
            "_under + small, supervisor",
            "$\\frac{ + small, supervisor",
            "<a&b> + small, supervisor",
        ):
            assert label in [text.strip() for text in texts]
        assert not any("\x1b" in text for text in texts)


def test_marks_lie_within_the_axes(tmp_path: Path) -> None:
    """Ten million characters beside a thousand, and dollars that differ a hundredfold."""
    from supdist.tools.evals.plots import drawings

    for number, scale in enumerate((1, 100)):
        cost = Tokens(cost_usd=0.001 * scale)
        examples = [record(i, context_chars=1000 * 10 ** (i % 5), supervisor=cost) for i in range(20)]
        write_run(tmp_path / str(number), examples)
    for drawing in drawings(analyse([tmp_path])):
        axes = drawing.figure.axes[0]
        left, right = axes.get_xlim()
        assert len(drawing.series) == 2
        for each in drawing.series:
            assert all(left < point.x < right for point in each.points), drawing.name
        assert axes.get_xscale() == ("linear" if drawing.name == "accuracy-steps" else "log")


@pytest.mark.parametrize(
    ("lengths", "ends"),
    [
        ([], []),
        ([5, 5, 5], [5]),
        ([100, 110, 120, 130, 140, 150], [150]),
        ([1000, 2000, 4000, 8000, 16000, 32000], [2000, 8000, 32000]),
        ([100] * 5 + [101] * 5 + [200] * 10, [101, 200]),
        ([1, *[100] * 9], [100]),
    ],
)
def test_no_two_bins_of_a_plot_lie_on_each_other(lengths: list[int], ends: list[int]) -> None:
    from supdist.tools.evals.plots import bin_ends

    assert bin_ends(lengths) == ends


@pytest.mark.parametrize(
    ("dollars", "scale", "ticks"), [((0, 0, 0), "linear", [0]), ((0, 0.0001, 3), "symlog", None)]
)
def test_marks_at_zero_lie_beside_each_other_on_an_axis_that_fits(
    tmp_path: Path, dollars: tuple[float, ...], scale: str, ticks: list[float] | None
) -> None:
    from supdist.tools.evals.plots import drawings

    for number, each in enumerate(dollars):
        costs: dict[str, Any] = {"supervisor": Tokens(cost_usd=each), "worker": Tokens(cost_usd=0)}
        write_run(tmp_path / str(number), [record(i, **costs) for i in range(4)])
    drawing = next(iter(drawings(analyse([tmp_path]))))
    axes = drawing.figure.axes[0]
    drawing.figure.draw_without_rendering()
    assert axes.get_xscale() == scale
    assert ticks is None or list(axes.get_xticks()) == ticks
    left, right = axes.get_xlim()
    assert left < 0 <= max(dollars) < right
    lines = [container[0] for container in axes.containers]
    places = {tuple(line.get_transform().transform((line.get_xdata()[0], 0.5))) for line in lines}
    assert len(places) == len(dollars)


def test_a_figure_that_no_run_has_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", [record(0, worker=Tokens(cost_usd=None))])
    lines = plotted(tmp_path / "plots", tmp_path / "runs")
    assert "accuracy-cost: nothing to draw" in lines[0]
    assert not (tmp_path / "plots/accuracy-cost.png").exists()
    assert (tmp_path / "plots/accuracy-steps.png").exists()


@pytest.mark.slow
def test_without_verdicts_the_scores_are_drawn(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", [record(index, right=None, score=0.25 * index) for index in range(4)])
    plotted(tmp_path / "plots", tmp_path / "runs")
    assert "Mean score" in (tmp_path / "plots/accuracy-steps.svg").read_text()


@pytest.mark.slow
def test_equal_runs_give_equal_files(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", [record(index) for index in range(4)])
    for name in ("one", "two"):
        plotted(tmp_path / name, tmp_path / "runs")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_without_matplotlib_the_remedy_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [record(0)])
    code = (
        "import sys; sys.modules['matplotlib'] = None; from supdist.tools.evals.analyze_cli import main;"
        f"sys.argv = ['analysis', {str(run)!r}, '--plots', 'plots']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "pip install 'supdist-engine[plots]'" in " ".join(done.stderr.split())
    assert not (tmp_path / "plots").exists()


def test_the_command_is_one_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    analyze_cli.analyze([write_run(tmp_path, [record(0)])], short=True)
    assert "large" in capsys.readouterr().out


@pytest.mark.slow
def test_ten_thousand_examples_are_read_and_compared(tmp_path: Path) -> None:
    for name, every in (("a", 2), ("b", 3)):
        records: list[Record] = [record(index, right=index % every == 0) for index in range(10_000)]
        write_run(tmp_path / name, records)
    found = analyse([tmp_path])
    assert cell(found, "Accuracy") == "50% (5000/10000)"
    (pair,) = found.pairs
    assert pair.accuracy is not None
    assert math.isclose(pair.accuracy.mean, 0.5 - 0.3334)
