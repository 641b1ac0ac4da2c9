"""An endpoint that plays supervisor, worker and judge, and settings of experiments with it."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

from supdist.tools.evals.config import ExperimentConfig
from supdist.tools.evals.records import TABLE
from supdist.tools.testing.fake_openai import FakeOpenAI, Request, Text

_TURNS = (
    "```repl\nfound = worker(query + '\\n' + context)\nprint(found)\n```",
    "```repl\nFINAL(found)\n```",
)


def play(request: Request) -> Text:
    """Reply as the supervisor, which asks the worker, as the worker, which looks up, or as the judge."""
    messages = request.body["messages"]
    asked = messages[-1]["content"]
    match request.model:
        case "big":
            return Text(_TURNS[sum(message["role"] == "assistant" for message in messages)])
        case "small":
            return Text(looked_up(asked))
        case _:
            said, wanted = re.findall(r"\d{4,}", asked)
            return Text("yes" if said == wanted else "no")


def looked_up(prompt: str) -> str:
    """Return the code of the item that a prompt asks for."""
    wanted = re.search(r"code of (item-\d+)\?", prompt)
    assert wanted is not None
    found = re.search(rf"code of {wanted[1]} is (\d+)", prompt)
    assert found is not None
    return found[1]


def settings(server: FakeOpenAI, **changes: Any) -> dict[str, Any]:
    """Of an experiment with the models of a server."""

    def model(name: str, **more: Any) -> dict[str, Any]:
        price = {"input_usd": 1.0, "output_usd": 2.5}
        standard = {"handler": "openai", "model": name, "base_url": server.base_url, "price": price}
        return {**standard, "max_retries": 0, "timeout": 10.0, **more}

    return {
        "task": "lookup",
        "supervisor": model("big", temperature=0.7),
        "worker": model("small", temperature=0.2),
        "judge": model("judge", temperature=0.0),
        **changes,
    }


def config(server: FakeOpenAI, **changes: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(settings(server, **changes))


def rows(folder: Path) -> list[dict[str, str]]:
    """Read results.csv, without times."""
    text = (folder / TABLE).read_text(encoding="utf-8")
    return [{**row, "seconds": ""} for row in csv.DictReader(io.StringIO(text, newline=""))]


def asked_twice(server: FakeOpenAI) -> int:
    """How many requests the server had had before."""
    asked = Counter((request.model, repr(request.body["messages"])) for request in server.requests)
    return sum(count - 1 for count in asked.values())
