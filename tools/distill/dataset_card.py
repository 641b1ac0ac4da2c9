"""Describes a data set, for programs and for people."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine.private_files import digest_file, is_there
from ...sandbox_image.text import printable
from ..evals.records import CONFIG, RECORDS

if TYPE_CHECKING:
    from .options import ExportOptions
    from .selection import Selection
    from .split import Side

CARD, README = "card.json", "README.md"

_FORMS = {
    ("sft", "run"): (
        "`{messages}`: each line is a whole conversation of a supervisor with its sandbox. If messages were "
        "left out to fit the model's window, each stretch has its own line, as it was sent at its end. "
        "Notes replace what was left out. Earlier turns are then in several lines."
    ),
    ("sft", "turn"): (
        "`{prompt, completion}`: each line is one reply of a supervisor, and the conversation before it."
    ),
    ("sft", "worker"): "`{messages}`: each line is a prompt of a worker and its answer.",
    ("preference", "run"): (
        "`{prompt, chosen, rejected}`: each line has the instructions and the question, and the rest of a "
        "better and of a worse run. The sandbox wrote the `user` messages of both: mask them in the loss."
    ),
}

_LICENCE = """\
Models wrote parts of these lines, and their code printed parts of documents. The terms of both hold for this
data set. Some providers do not allow that outputs of their models train other models. The documents have
licences of their own. Read both before you train on the data set or pass it on. The tool adds no terms."""


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """Counts of one side, and its file's SHA-256."""

    lines: int
    documents: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Experiment:
    """A folder of runs, relative to the data set."""

    folder: str
    records: int
    records_sha256: str
    config_sha256: str | None


@dataclass(frozen=True, slots=True)
class Card:
    """The facts of a data set; ``wanted`` are the options, ``models`` counts runs by role and model."""

    engine: str
    wanted: dict[str, Any]
    experiments: list[Experiment]
    runs_taken: int
    runs_left_out: dict[str, int]
    lines_left_out: dict[str, int]
    splits: Mapping[Side, SplitFacts]
    models: dict[str, dict[str, int]]

    def as_json(self) -> str:
        """Return the card for programs."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def as_markdown(self) -> str:
        """Return the card for people, with the head for ``datasets.load_dataset``."""
        files = [f"  - split: {side}\n    path: {side}.jsonl" for side in self.splits]
        head = ["---", "configs:", "- config_name: default", "  data_files:", *files, "---"] if files else []
        filters = self.wanted["filters"]
        others = {name: value for name, value in self.wanted.items() if name != "filters"}
        form = "worker" if self.wanted["role"] == "worker" else self.wanted["per"]
        return "\n".join([
            *head,
            f"# Distillation data ({self.wanted['format']}, {self.wanted['role']})",
            "",
            _FORMS[self.wanted["format"], form],
            "`sources.jsonl` names the run of each line. `card.json` has the facts of this page.",
            "No document is on both sides.",
            "",
            *_table(
                ("split", "lines", "documents", "SHA-256"),
                [
                    (f"{side}.jsonl", each.lines, each.documents, each.sha256)
                    for side, each in self.splits.items()
                ],
            ),
            *_table(("option", "value"), [*others.items(), *filters.items()]),
            f"Runs taken: {self.runs_taken:,}. Written by supdist-engine {self.engine}.",
            "",
            *_table(("runs left out", "how many"), self.runs_left_out.items()),
            *_table(("lines left out", "how many"), self.lines_left_out.items()),
            *_table(
                ("role", "model", "runs"),
                [(role, name, runs) for role, names in self.models.items() for name, runs in names.items()],
            ),
            *_table(
                ("experiment", "records", "SHA-256 of the records"),
                [(each.folder, each.records, each.records_sha256) for each in self.experiments],
            ),
            "## Licence",
            "",
            _LICENCE,
            "",
        ])  # fmt: skip


def facts_of(
    selection: Selection,
    out: Path,
    options: ExportOptions,
    lines_left_out: Counter[str],
    splits: Mapping[Side, SplitFacts],
) -> Card:
    """Make the card of a data set in ``out``."""
    taken = [run.record for run in selection.runs if not run.refused]
    refused = Counter(run.refused for run in selection.runs if run.refused)
    return Card(
        engine=version("supdist-engine"),
        wanted=asdict(options),
        experiments=[
            Experiment(
                # Relative, so that the card tells nothing of the machine.
                folder=os.path.relpath(folder, out.resolve()),
                records=records,
                records_sha256=digest_file(folder / RECORDS),
                config_sha256=digest_file(folder / CONFIG) if is_there(folder / CONFIG) else None,
            )
            for folder, records in selection.experiments.items()
        ],
        runs_taken=len(taken),
        runs_left_out=_sorted(selection.left_out + refused),
        lines_left_out=_sorted(lines_left_out),
        splits=splits,
        models={
            "supervisor": _sorted(Counter(record.supervisor_model for record in taken)),
            "worker": _sorted(Counter(record.worker_model for record in taken)),
        },
    )


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in sorted(counts.items()) if count}


def _table(head: tuple[str, ...], rows: Any) -> list[str]:
    body = ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    if not body:
        return []
    return ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *body, ""]


def _cell(value: object) -> str:
    # Names of models and folders come from others: as code on one line, they cannot change the page.
    if isinstance(value, (bool, int, float)) or value is None:
        return str(value)
    text = printable(str(value)).replace("\n", " ").replace("`", "'").replace("|", "/")
    return f"`{text}`" if text else ""
