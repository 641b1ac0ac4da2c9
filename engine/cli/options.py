"""What several commands take as options: of what a sandbox is made."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

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
