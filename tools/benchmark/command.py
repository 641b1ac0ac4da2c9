"""The benchmark's command: one machine, one run.

::

    python -m supdist.tools.benchmark --quick
    python -m supdist.tools.benchmark --only execute,worker --json figures.json --markdown --plots plots
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def benchmark(
    *,
    only: Annotated[
        list[str] | None, typer.Option(help="Metrics, by name and with commas between; all by default.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="How often each subject is asked.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Less of everything: within a minute.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="A file for every figure.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    plots: Annotated[Path | None, typer.Option(help="A folder for an image of each metric.")] = None,
) -> None:
    """Measure what sandboxes cost here, beside what else is installed that runs Python code."""
    import json
    import sys

    from .floor import Floor
    from .machine import load, machine
    from .metrics import chosen
    from .own import Ours
    from .peers import PEERS
    from .report import Series, as_markdown, as_text, rows
    from .rounds import measure, present
    from .subjects import Scale

    names = [name.strip() for given in only or [] for name in given.split(",")]
    try:
        metrics = chosen(names)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--only") from None

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    records: dict[Series, list[float]] = {}
    with Ours() as ours:
        here = machine(ours.isolation())
        subjects = [ours, *present([Floor(), *(peer() for peer in PEERS)], tell)]
        for metric in metrics:
            count = rounds or (metric.quick if quick else metric.rounds)
            tell(f"{metric.name}: {count} rounds")
            records |= measure(metric, subjects, Scale(quick), count, tell)
    after = load()
    lines = rows(metrics, records)
    print("\n".join(here.lines(after)), end="\n\n")
    print((as_markdown if markdown else as_text)(metrics, lines))
    if json_file is not None:
        data = {
            "machine": here.as_data(after),
            "results": [row.as_data(records[row.series]) for row in lines],
        }
        json_file.write_text(json.dumps(data, indent=1), encoding="utf-8")
    if plots is not None:
        from .plots import draw

        try:
            draw(plots, metrics, records)
        except ImportError:
            tell("without plots: pip install matplotlib")
