"""The options that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from ..config import option_of
from ..option import byte_count, whole_number

if TYPE_CHECKING:
    from ..sandbox import SandboxConfig

T = TypeVar("T")

# One day.
MOST_SECONDS = 86_400

# For ``context_settings``.
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


class Backend(Enum):
    """The values of ``SandboxConfig.backend``."""

    PROCESS = "process"
    DOCKER = "docker"


# The groups of flags in a help page.
MODELS, LIMITS, SANDBOX, LOGS, TRUST = "Models", "Limits", "Sandbox", "Logs and cache", "Permissions"

# Larger bounds are no help to a reader; RunConfig checks them.
_LARGEST_SHOWN = 1_000_000


def _option(
    *names: str, text: str, panel: str | None = None, metavar: str | None = None, complete: Any = None
) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar, autocompletion=complete)


# A copy of model_presets.PRESETS, which imports pydantic: a shell waits for completion.
_MODELS = (
    "ollama/", "lmstudio/", "llamacpp/", "vllm/", "openai/", "together/", "openrouter/", "anthropic/",
    "gemini/", "builtin",
)  # fmt: skip


def model_names(incomplete: str) -> list[str]:
    """Return what a name of a model can begin with, for completion."""
    return [each for each in _MODELS if each.startswith(incomplete)]


BackendOption = Annotated[
    Backend,
    _option("--backend", text="Isolate the code in a process or in a container.", panel=SANDBOX),
]
ImageOption = Annotated[
    str | None,
    _option(
        "--image", text="With --backend docker: an image that is built on the sandbox's image.", panel=SANDBOX
    ),
]
RawHtmlOption = Annotated[
    bool,
    _option("--raw-html", text="Keep HTML as it is, instead of converting it to text."),
]
RuntimeOption = Annotated[
    str | None,
    _option(
        "--runtime",
        text="With --backend docker: the daemon's runtime, such as runsc (gVisor).",
        panel=SANDBOX,
    ),
]
MemoryOption = Annotated[
    str | None,
    _option("--memory", metavar="SIZE", text="Memory that the code may use, such as 512MiB.", panel=SANDBOX),
]
PackagesOption = Annotated[
    str | None,
    _option(
        "--packages",
        metavar="DIR",
        text="A folder made by `pip install --target`. The code can import its packages.",
        panel=SANDBOX,
    ),
]
SupervisorOption = Annotated[
    str | None,
    _option(
        "--supervisor",
        metavar="MODEL",
        complete=model_names,
        text="The model that writes code, as PRESET/MODEL (ollama/qwen3:8b, openai/gpt-4.1), or builtin.",
        panel=MODELS,
    ),
]
WorkerOption = Annotated[
    str | None,
    _option(
        "--worker",
        metavar="MODEL",
        complete=model_names,
        text="The model that the code asks, named in the same way. Default: as configured, "
        "else the supervisor's.",
        panel=MODELS,
    ),
]
SupervisorModelOption = Annotated[
    str | None,
    _option(
        "--supervisor-model",
        metavar="NAME",
        text="The supervisor's name at the configured endpoint. Default: $SUPERVISOR_MODEL, "
        "else Llama 3.3 70B at Together or gpt-4.1 at OpenAI.",
        panel=MODELS,
    ),
]
WorkerModelOption = Annotated[
    str | None,
    _option(
        "--worker-model",
        metavar="NAME",
        text="The worker's. Default: $WORKER_MODEL, else Llama 3.1 8B at Together or gpt-4.1-mini at OpenAI.",
        panel=MODELS,
    ),
]
PromptsOption = Annotated[
    str | None,
    _option("--prompts-dir", metavar="DIR", text="A folder with other prompts.", panel=MODELS),
]
JsonResultOption = Annotated[bool, typer.Option("--json", help="Print only the result, as JSON.")]
JsonFindingsOption = Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")]


def flag(name: str, *names: str, note: str = "", panel: str | None = None) -> Any:
    """Return an option of ``RunConfig`` as a flag, with its bounds and its help text.

    Args:
        name: the option.
        *names: the flag's names; by default the option's with dashes.
        note: one more sentence of help.
        panel: the group in the help page.
    """
    option = option_of(name)
    # typer knows no exclusive bound; RunConfig checks those of numbers that are not whole.
    least = 1 if option.above == 0 and option.check is whole_number else option.least
    most = option.most if (option.most or 0) <= _LARGEST_SHOWN else None
    text = f"{option.doc[0].upper()}{option.doc[1:]}. {note}".rstrip()
    if option.check is byte_count:
        return typer.Option(*names, metavar="SIZE", help=text, rich_help_panel=panel)
    return typer.Option(*names, min=least, max=most, help=text, rich_help_panel=panel)


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


def takes(flags: Callable[..., T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Make a command of a function that takes a dataclass of flags."""

    def decorated(command: Callable[[T], None]) -> Callable[..., None]:
        def with_flags(**given: Any) -> None:
            command(flags(**given))

        hints = get_type_hints(flags, include_extras=True)
        parameters = [
            inspect.Parameter(each.name, each.KEYWORD_ONLY, default=each.default, annotation=hints[each.name])
            for each in inspect.signature(flags).parameters.values()
        ]
        wrapper: Any = with_flags
        # Typer reads the parameters of a command from its signature.
        wrapper.__signature__ = inspect.Signature(parameters)
        wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
        return wrapper

    return decorated
