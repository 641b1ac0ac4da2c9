"""``supdist-engine image``: the sandbox as an image for a docker daemon."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ...sandbox_image.image import BASE, VARIANTS

NO_SANDBOX = 4

app = typer.Typer(
    help="Build and check the sandbox's image.",
    epilog="Exit codes: 0 done, 2 wrong argument, 4 no daemon, or not to be built or not tight.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def build(
    base: Annotated[
        str, typer.Option(help="A Debian with Python 3.11 or newer and pip; pulled if it is not there.")
    ] = BASE,
    tag: Annotated[
        str | None, typer.Option(help="The image's name; engines look for the default one.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help=f"With more packages: {', '.join(VARIANTS)}.")] = None,
) -> None:
    """Build the image. Its name and size go to stdout, progress to stderr."""
    from ..errors import TaskError
    from ..sandbox.image import build as build_image

    if variant is not None and variant not in VARIANTS:
        raise TaskError(f"--variant: there is no {variant!r}; there is {', '.join(VARIANTS)}")
    image = build_image(base, tag, variant, lambda line: print(line, file=sys.stderr, flush=True))
    print(f"{image.tag} {image.size / 1e6:.0f} MB")


@app.command()
def check(
    image: Annotated[
        str | None, typer.Argument(help="An image that is built on ours; by default ours.")
    ] = None,
    *,
    runtime: Annotated[
        str | None, typer.Option(help="The daemon's runtime, such as runsc for gVisor.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Try, from inside a container of the image, what its walls stop. Exit 0 where the default level holds."""
    import asyncio

    from ..sandbox.doctor import examine
    from .console import report

    findings = asyncio.run(examine("docker", image, runtime))
    if not report("docker", findings, as_json=as_json):
        raise typer.Exit(NO_SANDBOX)
