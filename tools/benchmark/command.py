"""The command ``benchmark``: time sandboxes and their peers on this machine, in one run.

::

    python -m supdist.tools.benchmark --quick
    python -m supdist.tools.benchmark --only execute,worker --json figures.json --markdown --plots plots
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...engine.cli.signals import raise_at_signal


def benchmark(
    *,
    only: Annotated[
        list[str] | None, typer.Option(help="Names of metrics, separated by commas; all by default.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="How often each subject is measured.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Less of everything: within a minute.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="A file for every figure.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    plots: Annotated[Path | None, typer.Option(help="A folder for an image of each metric.")] = None,
) -> None:
    """Measure the cost of sandboxes, and of other installed software that runs Python code."""
    import json
    import sys

    from ..tables import terminal_width
    from .floor import Floor
    from .machine import load, machine
    from .metrics import chosen
    from .our_trials import OurSubject
    from .peers import PEERS
    from .report import Series, as_markdown, as_text, rows
    from .rounds import available, measure
    from .subjects import Scale

    names = [name.strip() for given in only or [] for name in given.split(",")]
    try:
        metrics = chosen(names)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--only") from None

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    # Figures go to stdout, all else to stderr.
    records: dict[Series, list[float]] = {}
    with raise_at_signal(), OurSubject.open() as ours:
        here = machine(ours.isolation())
        subjects = [ours, *available([Floor(), *(peer() for peer in PEERS)], log)]
        for metric in metrics:
            count = rounds or (metric.quick if quick else metric.rounds)
            log(f"{metric.name}: {count} rounds")
            records |= measure(metric, subjects, Scale(quick), count, log)
    load_after = load()
    lines = rows(metrics, records)
    print("\n".join(here.lines(load_after)), end="\n\n")
    print(as_markdown(metrics, lines) if markdown else as_text(metrics, lines, terminal_width()))
    if json_file is not None:
        data = {
            "machine": here.as_data(load_after),
            "results": [row.as_data(records[row.series]) for row in lines],
        }
        json_file.write_text(json.dumps(data, indent=1), encoding="utf-8")
    if plots is not None:
        from .plots import draw

        try:
            draw(plots, metrics, records)
        except ImportError:
            log("no plots: matplotlib is not installed; pip install matplotlib")
