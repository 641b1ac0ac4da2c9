"""The options that several commands share."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..config import option_of
from ..option import whole_number

if TYPE_CHECKING:
    from ..model_specs import ModelSpec, Role
    from ..sandbox import SandboxConfig

# One day.
MOST_SECONDS = 86_400


class Backend(Enum):
    """The values of ``SandboxConfig.backend``."""

    PROCESS = "process"
    DOCKER = "docker"


BackendOption = Annotated[
    Backend, typer.Option("--backend", help="Isolate the code in a process or in a container.")
]
ImageOption = Annotated[
    str | None,
    typer.Option("--image", help="With --backend docker: an image that is built on the sandbox's image."),
]
RuntimeOption = Annotated[
    str | None,
    typer.Option("--runtime", help="With --backend docker: the daemon's runtime, such as runsc (gVisor)."),
]
PackagesOption = Annotated[
    str | None,
    typer.Option(
        "--packages", help="A folder made by `pip install --target`. The code can import its packages."
    ),
]
_PRESETS = "PRESET/MODEL, such as ollama/qwen3:8b or openai/gpt-4.1, or builtin."
SupervisorOption = Annotated[
    str | None,
    typer.Option("--supervisor", metavar="MODEL", help=f"The model that writes code: {_PRESETS}"),
]
WorkerOption = Annotated[
    str | None,
    typer.Option(
        "--worker",
        metavar="MODEL",
        help="The model that the code asks, named alike. Default: as configured, else the supervisor's.",
    ),
]
JsonResultOption = Annotated[bool, typer.Option("--json", help="Print only the result, as JSON.")]
JsonFindingsOption = Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")]


def flag(name: str, *names: str, note: str = "") -> Any:
    """Return an option of ``RunConfig`` as a flag, with its bounds and its help text.

    Args:
        name: the option.
        *names: the flag's names; by default the option's with dashes.
        note: one more sentence of help.
    """
    option = option_of(name)
    # typer knows no exclusive bound; RunConfig checks those of numbers that are not whole.
    least = 1 if option.above == 0 and option.check is whole_number else option.least
    text = f"{option.doc[0].upper()}{option.doc[1:]}. {note}".rstrip()
    return typer.Option(*names, min=least, max=option.most, help=text)


def group_with_default(command: str) -> type[TyperGroup]:
    """Return a group in which the name of one command may be left out."""

    class Group(TyperGroup):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            # `broker models.json` means `broker serve models.json`.
            if args and args[0] not in (*self.commands, "--help"):
                args = [command, *args]
            return super().parse_args(ctx, args)

    return Group


def sandbox_config(**wanted: Any) -> SandboxConfig:
    """Return a sandbox's configuration.

    Raises:
        TaskError: a value is wrong; the message names its option.
    """
    from pydantic import ValidationError

    from ..errors import TaskError
    from ..sandbox import SandboxConfig
    from ..validation import in_plain_words

    if isinstance(backend := wanted.get("backend"), Backend):
        wanted["backend"] = backend.value
    if wanted.get("backend") != Backend.DOCKER.value:
        # Ignored, they would promise an isolation that is not there.
        for name in ("image", "runtime", "warm"):
            if wanted.get(name):
                raise TaskError(f"--{name} is for containers; add --backend docker")
    try:
        return SandboxConfig.model_validate(wanted)
    except ValidationError as error:
        problem = error.errors()[0]
        option = f"--{problem['loc'][0]}: " if problem["loc"] else ""
        raise TaskError(f"{option}{in_plain_words(problem)}") from None


def typed_models(supervisor: str | None, worker: str | None) -> dict[Role, ModelSpec]:
    """Return the models that ``--supervisor`` and ``--worker`` name.

    Raises:
        TaskError: a name is wrong.
    """
    from ..errors import TaskError
    from ..model_specs import model_named

    found: dict[Role, ModelSpec] = {}
    named: tuple[tuple[Role, str | None], ...] = (("supervisor", supervisor), ("worker", worker))
    for role, name in named:
        try:
            if name is not None:
                found[role] = model_named(name)
        except TaskError as error:
            raise TaskError(f"--{role}: {error}") from error
    return found
