"""The commands ``supdist-engine image``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ...sandbox_image.image import BASE, VARIANTS
from .command import with_examples, with_group_examples
from .exit import NO_SANDBOX, wait
from .options import JsonFindingsOption, RuntimeOption
from .signals import raise_at_signal

app = typer.Typer(
    cls=with_group_examples("supdist-engine image build", "supdist-engine image check"),
    help="Build and check the image of the sandbox for a Docker daemon.",
    epilog="Exit codes: 0 done, 2 wrong argument, 4 the daemon or the build failed, or isolation is weak.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(cls=with_examples("supdist-engine image build", "supdist-engine image build --variant data"))
def build(
    base: Annotated[
        str,
        typer.Option(help="An image of Debian with Python 3.11 or newer and pip; pulled if it is missing."),
    ] = BASE,
    tag: Annotated[
        str | None, typer.Option(help="The name of the new image. Default: the name that engines look for.")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help=f"A variant with more packages: {', '.join(VARIANTS)}.")
    ] = None,
) -> None:
    """Build the image. Its name and size go to stdout, progress to stderr."""
    from ..errors import TaskError
    from ..sandbox.image import build as build_image

    if variant is not None and variant not in VARIANTS:
        raise TaskError(f"--variant: there is no variant {variant!r}; there is {', '.join(VARIANTS)}")
    with raise_at_signal():
        image = build_image(base, tag, variant, lambda line: print(line, file=sys.stderr, flush=True))
    print(f"{image.tag} {image.size / 1e6:.0f} MB")


@app.command(cls=with_examples("supdist-engine image check"))
def check(
    image: Annotated[
        str | None, typer.Argument(help="An image that is built on the sandbox's image. Default: that image.")
    ] = None,
    *,
    runtime: RuntimeOption = None,
    as_json: JsonFindingsOption = False,
) -> None:
    """Attack the isolation from inside a container of the image. Exit 0 if the default level holds."""
    from ..sandbox.doctor import examine
    from .console import print_findings

    findings = wait(examine("docker", image, runtime))
    if not print_findings("docker", findings, as_json=as_json):
        raise typer.Exit(NO_SANDBOX)
