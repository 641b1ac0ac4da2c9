"""Data sets for distillation, made of real runs."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from export_support import Experiment, both, read_lines
from hypothesis import given
from hypothesis import strategies as st
from support import block

from supdist.engine import Prompts, RunLimits, TaskError
from supdist.handlers import Completion, Message, Rejected, ScriptedHandler
from supdist.tools.distill.export import appearing, export
from supdist.tools.distill.options import ExportOptions, Format
from supdist.tools.distill.selection import Filters
from supdist.tools.distill.split import documents, split

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("engine")]

LOOK, ANSWER = block("print(len(context))"), block("FINAL(worker('yes'))")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment(tmp_path / "logs" / "task" / "one")


def sft(*, per: Any = "run", role: Any = "supervisor", **filters: Any) -> ExportOptions:
    return ExportOptions("sft", role, per, Filters(**filters))


def exported(experiment: Experiment, wanted: ExportOptions, name: str = "out") -> Any:
    """Export to a new folder; return the lines and the card."""
    out = experiment.folder.parent / name
    card = export([experiment.folder], out, wanted)
    return both(out), card


async def test_a_line_is_what_the_supervisor_was_sent_and_said(experiment: Experiment) -> None:
    supervisor = ScriptedHandler([LOOK, "I think.", ANSWER])
    await experiment.run("a", supervisor)
    (line,), card = exported(experiment, sft())
    assert line == {"messages": [*supervisor.calls[-1], {"role": "assistant", "content": ANSWER}]}
    assert card.runs_taken == 1
    assert card.runs_left_out == {}


async def test_a_line_a_turn_has_each_request_as_it_was_sent(experiment: Experiment) -> None:
    supervisor = ScriptedHandler([LOOK, ANSWER])
    await experiment.run("a", supervisor)
    lines, _ = exported(experiment, sft(per="turn"))
    assert lines == [
        {"prompt": asked, "completion": [{"role": "assistant", "content": reply}]}
        for asked, reply in zip(supervisor.calls, [LOOK, ANSWER], strict=True)
    ]


def forgetful(play: Callable[[int], str]) -> ScriptedHandler:
    """Make a supervisor with a small window. ``play`` gets the number of its turn, from 0."""

    def reply(messages: Sequence[Message]) -> str:
        return play(sum(message["role"] == "assistant" for message in messages))

    supervisor = ScriptedHandler(reply)
    supervisor.window = 20_000
    supervisor.count_tokens = lambda messages: sum(len(m["content"]) for m in messages) // 2  # type: ignore[method-assign]  # a model that counts tokens
    supervisor.max_tokens = 1000
    return supervisor


def prints_much(turn: int) -> str:
    return block(f"print('{turn:02}' * 2000)" if turn < 9 else "FINAL(1)")


def says_much(turn: int) -> str:
    return "x" * 8000 if turn < 6 else block("FINAL(1)")


async def test_where_messages_were_left_out_there_is_a_line_for_each_stretch(experiment: Experiment) -> None:
    supervisor = forgetful(prints_much)
    prompts = Prompts(left_out="(gone: $number)")
    await experiment.run("a", supervisor, output_limit=4000, prompts=prompts)
    lines, _ = exported(experiment, sft())
    assert len(lines) > 1
    sent = [line["messages"][:-1] for line in lines]
    assert all(messages in supervisor.calls for messages in sent)
    assert sent[-1] == supervisor.calls[-1]
    assert "(gone: 3)" in [message["content"] for message in sent[-1]]
    assert "(gone: 3)" not in [message["content"] for message in sent[0]]
    turns, _ = exported(experiment, sft(per="turn"), "turns")
    assert [line["prompt"] for line in turns] == supervisor.calls


async def test_a_note_in_the_place_of_its_own_words_is_nothing_to_learn(experiment: Experiment) -> None:
    supervisor = forgetful(says_much)
    await experiment.run("a", supervisor)
    lines, card = exported(experiment, sft())
    said = [message["content"] for line in lines for message in line["messages"][2:]]
    assert not any("history(" in content for content in said)
    assert sum(card.lines_left_out.values()) >= 1
    turns, _ = exported(experiment, sft(per="turn"), "turns")
    assert [line["prompt"] for line in turns] == supervisor.calls


async def test_a_best_answer_and_a_lost_state_are_part_of_it_unless_they_are_filtered(
    experiment: Experiment,
) -> None:
    await experiment.run("a", [LOOK, "It is 7."], max_iterations=1)
    await experiment.run("b", [block("import os; os._exit(1)"), ANSWER])
    lines, _ = exported(experiment, sft())
    assert "The research is over" in lines[0]["messages"][-2]["content"]
    assert "all variables are gone" in lines[1]["messages"][3]["content"]
    _, card = exported(experiment, sft(only_final=True), "final")
    assert card.runs_left_out == {"no FINAL": 1}
    _, card = exported(experiment, sft(allow_errors=False), "clean")
    assert card.runs_left_out == {"errors": 1}


@pytest.mark.parametrize("replies", [[block("1/0"), ANSWER], [block("worker('x' * 50_000)"), ANSWER]])
async def test_no_errors_means_none_in_blocks_and_none_of_the_worker(
    experiment: Experiment, replies: list[str]
) -> None:
    worker = ScriptedHandler(lambda messages: "yes" if len(messages[0]["content"]) < 10 else Rejected("no"))
    await experiment.run("a", replies, worker=worker)
    assert exported(experiment, sft(allow_errors=False))[1].runs_left_out == {"errors": 1}


async def test_no_errors_means_no_reply_that_was_cut_off(experiment: Experiment) -> None:
    cut = ScriptedHandler([Completion(LOOK, finish_reason="length"), ANSWER])
    await experiment.run("a", cut)
    assert exported(experiment, sft(allow_errors=False))[1].runs_left_out == {"errors": 1}
    lines, card = exported(experiment, sft(per="turn"), "turns")
    assert [line["completion"][0]["content"] for line in lines] == [ANSWER]
    assert sum(card.lines_left_out.values()) == 1


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ({"min_score": 0.5}, ["good"]),
        ({"only_correct": True}, ["good"]),
        ({"max_steps": 1}, ["short"]),
        ({"max_cost_usd": 0.1}, ["good", "judged"]),
        ({}, ["good", "judged", "short"]),
    ],
)
async def test_filters_look_at_the_records(experiment: Experiment, filters: Any, left: list[str]) -> None:
    await experiment.run("good", [LOOK, ANSWER], score=0.9)
    await experiment.run("short", [ANSWER], score=0.2, cost_usd=None)
    await experiment.run("judged", [LOOK, LOOK, ANSWER], score=None)
    exported(experiment, sft(**filters))
    rows = read_lines(experiment.folder.parent / "out" / "sources.jsonl")
    assert sorted(row["example"] for row in rows) == left


async def test_runs_that_failed_or_go_on_or_were_killed_are_counted_and_left_out(
    experiment: Experiment,
) -> None:
    await experiment.run("good", [LOOK, ANSWER])
    await experiment.run("cut", [LOOK, ANSWER])
    log = experiment.logs("cut") / "supervisor.jsonl"
    log.write_text(log.read_text()[:-200])
    shutil.copytree(experiment.logs("cut"), experiment.logs("going-on"))
    experiment.failed("failed")
    experiment.record("direct", strategy="direct", score=1.0)
    experiment.record("../good", score=1.0)
    lines, card = exported(experiment, sft())
    assert len(lines) == 1
    assert card.runs_left_out == {
        "cut off": 1, "direct call": 1, "failed": 1, "not ended": 1, "unreadable": 1,
    }  # fmt: skip


async def test_after_a_kill_the_next_attempt_is_read_from_the_same_folder(experiment: Experiment) -> None:
    await experiment.run("a", [LOOK, block("FINAL('first')")])
    for stream in ("supervisor", "worker", "repl"):
        log = experiment.logs("a") / f"{stream}.jsonl"
        log.write_text(log.read_text()[:-20])
    await experiment.run("a", [LOOK, block("FINAL('second')")])
    (line,), _ = exported(experiment, sft())
    assert line["messages"][-1]["content"] == block("FINAL('second')")


@pytest.mark.parametrize("broken", ['"step": 2', '"messages": [{', '"notes"'])
async def test_a_log_that_was_tampered_with_is_no_conversation(experiment: Experiment, broken: str) -> None:
    await experiment.run("a", forgetful(prints_much), output_limit=4000)
    log = experiment.logs("a") / "supervisor.jsonl"
    assert broken in log.read_text()
    log.write_text(log.read_text().replace(broken, broken.replace("2", "7").replace("s", "z")))
    assert exported(experiment, sft())[1].runs_left_out == {"unreadable": 1}


async def test_nothing_is_there_twice_even_if_a_repetition_took_longer(experiment: Experiment) -> None:
    slow = block("import time; time.sleep(0.15 * (query == 'why?'))")
    await experiment.run("a", [LOOK, slow, ANSWER])
    await experiment.run("b", [LOOK, slow, ANSWER])
    log = experiment.logs("b") / "supervisor.jsonl"
    log.write_text(log.read_text().replace("The block ran (0.", "The block ran (7."))
    lines, card = exported(experiment, sft())
    assert len(lines) == 1
    assert card.lines_left_out == {"repeated": 1}


async def test_the_workers_turns_are_apart(experiment: Experiment) -> None:
    worker = ScriptedHandler(lambda messages: Rejected("no") if "bad" in messages[0]["content"] else "ok")
    await experiment.run(
        "a", [block("worker_batch(['one', 'two', 'one'])"), block("worker('bad')"), ANSWER], worker=worker
    )
    lines, card = exported(experiment, sft(role="worker"))
    assert sorted(line["messages"][0]["content"] for line in lines) == ["one", "two", "yes"]
    assert all(line["messages"][1:] == [{"role": "assistant", "content": "ok"}] for line in lines)
    assert sorted(card.lines_left_out.values()) == [1, 1]


async def test_pairs_are_of_one_question_and_the_better_one_is_chosen(
    experiment: Experiment, tmp_path: Path
) -> None:
    other = Experiment(tmp_path / "logs" / "task" / "two")
    await experiment.run("a", [LOOK, block("FINAL('good')")], score=1.0)
    await other.run("a", [LOOK, block("FINAL('bad')")], score=0.0)
    await experiment.run("tie", [LOOK, block("FINAL('x')")], score=0.5)
    await other.run("tie", [LOOK, block("FINAL('y')")], score=0.5)
    await experiment.run("same", [LOOK, ANSWER], score=1.0)
    await other.run("same", [LOOK, ANSWER], score=0.0)
    await experiment.run("turns", [LOOK, block("FINAL('good')")], score=1.0, max_iterations=5)
    await other.run("turns", [LOOK, block("FINAL('bad')")], score=0.0)
    await experiment.run("text", [LOOK, block("FINAL('good')")], score=1.0)
    await other.run("text", [LOOK, block("FINAL('bad')")], score=0.0, context="the DOCUMENT")
    out = tmp_path / "out"
    export([tmp_path / "logs"], out, ExportOptions("preference"))
    (line,) = both(out)
    assert [message["role"] for message in line["prompt"]] == ["system", "user"]
    assert [line[side][-1]["content"] for side in ("chosen", "rejected")] == [
        block("FINAL('good')"), block("FINAL('bad')"),
    ]  # fmt: skip
    assert [message["role"] for message in line["chosen"]] == ["assistant", "user", "assistant"]
    assert read_lines(out / "sources.jsonl")[0]["rejected"]["run"].endswith("two/examples/a")


async def test_pairs_of_a_question_are_bounded_and_filters_are_for_the_chosen(tmp_path: Path) -> None:
    for number in range(4):
        each = Experiment(tmp_path / "logs" / str(number))
        await each.run("a", [LOOK, block(f"FINAL({number})")], score=number / 3)
    for most, wanted in ((2, 2), (9, 6)):
        export([tmp_path / "logs"], tmp_path / str(most), ExportOptions("preference", max_pairs=most))
        assert len(both(tmp_path / str(most))) == wanted
    export(
        [tmp_path / "logs"], tmp_path / "best", ExportOptions("preference", filters=Filters(min_score=0.9))
    )
    lines = both(tmp_path / "best")
    assert [line["chosen"][-1]["content"] for line in lines] == [block("FINAL(3)")] * 3


def test_pairs_are_of_whole_runs_of_supervisors() -> None:
    with pytest.raises(TaskError, match="whole runs"):
        ExportOptions("preference", role="worker")


async def test_no_document_is_on_both_sides_and_order_does_not_matter(tmp_path: Path) -> None:
    folders = [tmp_path / "logs" / name for name in ("one", "two")]
    for folder in folders:
        each = Experiment(folder)
        for number in range(3):
            document = f"text {number}"
            await each.run(f"{number}-a", [LOOK, ANSWER], context=document, query=f"{folder.name} a {number}")
            await each.run(
                f"{number}-b",
                [ANSWER],
                context=document + "!",
                document=document,
                query=f"{folder.name} {number}",
            )
            await each.run(
                f"{number}-c",
                [LOOK],
                context=document,
                document=document,
                query=f"{folder.name} {number}",
                max_iterations=1,
                limits=RunLimits(final_seconds=5),
            )
    wanted = ExportOptions("sft", validation=0.4, seed=3)
    export(folders, tmp_path / "there", wanted)
    export([*reversed(folders), *folders], tmp_path / "back", wanted)
    assert (tmp_path / "there" / "train.jsonl").read_bytes() == (
        tmp_path / "back" / "train.jsonl"
    ).read_bytes()
    assert (tmp_path / "there" / "README.md").read_bytes() == (tmp_path / "back" / "README.md").read_bytes()
    rows = read_lines(tmp_path / "there" / "sources.jsonl")
    sides = {"train": set[str](), "validation": set[str]()}
    for row in rows:
        sides[row["split"]].add(row["example"][0])
    assert sides["train"]
    assert sides["validation"]
    assert not sides["train"] & sides["validation"]


mentions = st.lists(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=3), min_size=1, max_size=12)


@given(mentions=mentions, validation=st.floats(0, 1), seed=st.integers(0, 99), data=st.data())
def test_a_split_is_of_documents_and_knows_no_order(
    mentions: list[list[str]], validation: float, seed: int, data: st.DataObject
) -> None:
    one = documents(mentions)
    shuffled = data.draw(st.permutations([*mentions, mentions[0]]))
    assert documents([[*reversed(each)] for each in shuffled]) == one
    assert all(len({one[name] for name in each}) == 1 for each in mentions)
    sides = split(one.values(), validation, seed)
    assert split([*reversed(list(one.values()))], validation, seed) == sides
    if len(sides) > 1 and 0 < validation < 1:
        assert set(sides.values()) == {"train", "validation"}
    elif validation in (0, 1):
        assert set(sides.values()) == {"validation" if validation else "train"}


@given(mentions=mentions)
def test_documents_that_share_no_name_however_indirectly_are_others(mentions: list[list[str]]) -> None:
    one = documents(mentions)
    for document in set(one.values()):
        reached = {document}
        for _ in mentions:
            reached.update(*(each for each in mentions if reached & set(each)))
        assert reached == {name for name in one if one[name] == document}


@given(seed=st.integers(0, 999))
def test_a_document_stays_on_its_side_when_others_come(seed: int) -> None:
    before = split([f"{number}" for number in range(50)], 0.3, seed)
    after = split([f"{number}" for number in range(80)], 0.3, seed)
    assert before.items() <= after.items()
    assert 2 <= sum(side == "validation" for side in after.values()) <= 50


HOSTILE = '\ud800 \x00\x1b[31m \u2028\u202e \U0001f600 \\ud800 "}'


async def test_hostile_text_stays_json_that_trainers_read(experiment: Experiment, tmp_path: Path) -> None:
    worker = ScriptedHandler(lambda _: HOSTILE)
    code = f"print(worker({HOSTILE!r}), context, query)"
    await experiment.run("a", [block(code), f"{HOSTILE}\n{ANSWER}"], worker=worker, query=HOSTILE,
                         context={"key": [HOSTILE]})  # fmt: skip
    await experiment.run("b", [LOOK, ANSWER], worker=worker)
    (line, _), _ = exported(experiment, sft())
    assert "\x1b[31m \u2028\u202e \U0001f600" in line["messages"][-1]["content"]
    line["messages"][1]["content"].encode()
    exported(experiment, sft(role="worker"), "worker")
    exported(experiment, sft(per="turn"), "turns")
    for name in ("out", "worker", "turns"):
        for path in (experiment.folder.parent / name).iterdir():
            path.read_bytes().decode()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sft", "preference"])
async def test_the_library_that_trainers_use_reads_it(
    experiment: Experiment, tmp_path: Path, form: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets: Any = pytest.importorskip("datasets", reason="`pip install datasets` to try what it reads")
    other = Experiment(tmp_path / "logs" / "task" / "two")
    for each, text in ((experiment, "good"), (other, HOSTILE)):
        for number in range(3):
            await each.run(
                str(number),
                [LOOK, block(f"print({text!r}); FINAL({text!r})")],
                query=f"{number}",
                context=f"{number}",
                score=float(text == "good"),
            )
    out = tmp_path / "out"
    export([tmp_path / "logs"], out, ExportOptions(form, validation=0.5))
    files = {side: str(out / f"{side}.jsonl") for side in ("train", "validation")}
    named = datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path / "cache"))
    whole = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    for loaded in (named, whole):
        for side in ("train", "validation"):
            assert list(loaded[side]) == read_lines(out / f"{side}.jsonl")


async def test_a_folder_that_is_there_is_refused_and_only_an_export_is_replaced(
    experiment: Experiment,
) -> None:
    await experiment.run("a", [LOOK, ANSWER])
    out = experiment.folder.parent / "out"
    export([experiment.folder], out, sft())
    with pytest.raises(TaskError, match="--force"):
        export([experiment.folder], out, sft())
    (out / "train.jsonl").unlink()
    export([experiment.folder], out, sft(), force=True)
    assert both(out)
    with pytest.raises(TaskError, match="no export"):
        export([experiment.folder], experiment.folder, sft(), force=True)
    with pytest.raises(TaskError, match="holds no"):
        export([out], out.with_name("other"), sft())
    assert sorted(each.name for each in out.parent.iterdir()) == ["one", "out"]


def test_a_folder_that_was_not_finished_never_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with appearing(out) as folder:
        (folder / "card.json").write_text("first")
    with contextlib.suppress(KeyboardInterrupt), appearing(out, force=True) as folder:
        (folder / "card.json").write_text("second")
        raise KeyboardInterrupt
    assert (out / "card.json").read_text() == "first"
    other = tmp_path / "other"
    with pytest.raises(TaskError, match="already"), appearing(other) as folder:
        other.mkdir()  # somebody was faster
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other", "out"]


async def test_a_place_that_cannot_be_written_is_said(experiment: Experiment) -> None:
    await experiment.run("a", [LOOK, ANSWER])
    blocked = experiment.folder / "results.jsonl"
    out = blocked / "out"  # below a file
    with pytest.raises(TaskError, match=r"results\.jsonl"):
        export([experiment.folder], out, sft())
    assert {each.name for each in experiment.folder.iterdir()} == {"examples", "results.jsonl"}


async def test_the_card_says_what_is_there_and_keeps_its_table(experiment: Experiment) -> None:
    await experiment.run("a", [LOOK, ANSWER])
    (experiment.folder / "results.jsonl").write_text(
        (experiment.folder / "results.jsonl").read_text().replace('"scripted"', '"a|`b\\n# head"')
    )
    _, card = exported(experiment, sft(min_score=0.5))
    out = experiment.folder.parent / "out"
    text = (out / "README.md").read_text()
    assert "# head" not in text.splitlines()
    assert "| `supervisor` | `a/'b # head` | 1 |" in text
    assert "| `min_score` | 0.5 |" in text
    assert "icence" in text
    assert json.loads((out / "card.json").read_text())["runs_taken"] == card.runs_taken == 1
    row = read_lines(out / "sources.jsonl")[0]
    assert (out / row["run"]).resolve() == experiment.logs("a").resolve()
