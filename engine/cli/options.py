"""What several commands take as options: of what a sandbox is made."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..config import option_of
from ..option import whole_number

if TYPE_CHECKING:
    from ..sandbox import SandboxConfig


class Backend(Enum):
    """As in ``SandboxConfig``."""

    PROCESS = "process"
    DOCKER = "docker"


WhatBackend = Annotated[Backend, typer.Option("--backend", help="What the sandbox's walls are made of.")]
WhatImage = Annotated[str | None, typer.Option("--image", help="docker: an image built on ours.")]
WhatRuntime = Annotated[
    str | None, typer.Option("--runtime", help="docker: the daemon's runtime, such as runsc (gVisor).")
]
WhatPackages = Annotated[
    str | None,
    typer.Option(
        "--packages", help="A folder made by `pip install --target`, which the code can import from."
    ),
]


def flag(name: str, *names: str, note: str = "") -> Any:
    """Return the flag of an option of a run, with its bounds and its help text from ``RunConfig``.

    Args:
        name: the option.
        *names: the flag's names; by default the option's name with dashes.
        note: a further sentence of the help text.
    """
    option = option_of(name)
    least = 1 if option.above == 0 and option.check is whole_number else option.least
    text = f"{option.doc[0].upper()}{option.doc[1:]}. {note}".rstrip()
    return typer.Option(*names, min=least, max=option.most, help=text)


def group_with_default(command: str) -> type[TyperGroup]:
    """Return a group of commands of which one needs no name: ``broker models.json`` is ``broker serve models.json``."""

    class Group(TyperGroup):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if args and args[0] not in (*self.commands, "--help"):
                args = [command, *args]
            return super().parse_args(ctx, args)

    return Group


def sandbox_config(**wanted: Any) -> SandboxConfig:
    """A sandbox's config with what options say.

    Raises:
        TaskError: one of them says what cannot be; the message names it.
    """
    from pydantic import ValidationError

    from ..errors import TaskError
    from ..sandbox import SandboxConfig

    if isinstance(backend := wanted.get("backend"), Backend):
        wanted["backend"] = backend.value
    try:
        return SandboxConfig.model_validate(wanted)
    except ValidationError as error:
        problem = error.errors()[0]
        option = f"--{problem['loc'][0]}: " if problem["loc"] else ""
        raise TaskError(f"{option}{problem['msg'].removeprefix('Value error, ')}") from None
