"""The options of a run: name, type, default, bounds, unit and meaning of each, in one place."""

# Heavy modules are imported inside functions: `--help` of the command line reads its texts here.
from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache as once
from textwrap import indent
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from ..sandbox_image.text import one_line, shorten
from .arguments import describe, reject
from .errors import TaskError
from .option import (
    Check,
    Option,
    answer_cache,
    byte_count,
    event_function,
    flag,
    number,
    path,
    prompt_texts,
    sandbox_config,
    tool_functions,
    whole_number,
)

if TYPE_CHECKING:
    from .broker.cache import ResponseCache
    from .events import Event
    from .sandbox import SandboxConfig
    from .supervisor.prompts import Prompts
    from .toolbox.toolbox import Tool


# Above every real limit; a JSON file, a log and a database hold it without loss.
_MOST_COUNT = 10**15
_MOST_SHOWN = 60


def _described(
    check: Check,
    doc: str,
    *,
    optional: bool = False,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> dict[str, Option]:
    return {"option": Option(doc, check, optional, least, above, most)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The options of a run, checked when the config is made.

    ``run(..., config=RunConfig(max_cost_usd=0.5))`` and ``run(..., max_cost_usd=0.5)`` are the same.
    ``options()`` names them, and ``dataclasses.replace`` makes a changed copy.

    Raises:
        TaskError: an option has a wrong type, or is out of bounds.
    """

    max_iterations: int = field(
        default=15,
        metadata=_described(
            whole_number,
            "turns of the supervisor; then it is asked once for its best answer",
            least=1,
            most=10_000,
        ),
    )
    output_limit: int = field(
        default=2000,
        metadata=_described(
            whole_number,
            "characters of a block's output that the supervisor is shown; the log keeps all",
            least=1,
            most=_MOST_COUNT,
        ),
    )
    worker_ctx_k: int = field(
        default=8,
        metadata=_described(
            whole_number,
            "thousands of tokens in the worker's window, as the supervisor is told",
            least=1,
            most=_MOST_COUNT,
        ),
    )
    max_worker_calls: int | None = field(
        default=None,
        metadata=_described(
            whole_number, "calls of the worker that are paid for", optional=True, above=0, most=_MOST_COUNT
        ),
    )
    max_tokens: int | None = field(
        default=None,
        metadata=_described(
            whole_number,
            "tokens read and written, of supervisor and worker together",
            optional=True,
            above=0,
            most=_MOST_COUNT,
        ),
    )
    max_cost_usd: float | None = field(
        default=None,
        metadata=_described(number, "US dollars, for supervisor and worker together", optional=True, above=0),
    )
    max_seconds: float | None = field(
        default=None,
        metadata=_described(
            number,
            "seconds for the whole run; the best answer may take final_seconds (60) more",
            optional=True,
            above=0,
        ),
    )
    call_seconds: float | None = field(
        default=600.0,
        metadata=_described(
            number,
            "seconds for one worker call after it is sent, and for a best answer without max_seconds",
            optional=True,
            above=0,
        ),
    )
    final_seconds: float = field(
        default=60.0, metadata=_described(number, "seconds for the best answer after max_seconds", above=0)
    )
    sandbox: SandboxConfig | None = field(
        default=None, metadata=_described(sandbox_config, "limits and timeouts of the sandbox", optional=True)
    )
    cache: str | os.PathLike[str] | ResponseCache = field(
        default="run",
        metadata=_described(
            answer_cache,
            "where finished answers are kept: run (for this run), off, or a file that runs can share",
        ),
    )
    cache_sampled: bool = field(
        default=False,
        metadata=_described(
            flag, "whether answers that are drawn at random (temperature above 0) are kept, too"
        ),
    )
    cache_counts: bool = field(
        default=False,
        metadata=_described(
            flag,
            "whether answers that another run paid for are charged; a restarted run sees the same budget",
        ),
    )
    log_dir: str | os.PathLike[str] | None = field(
        default=None,
        metadata=_described(
            path, "a folder for the logs supervisor.jsonl, worker.jsonl and repl.jsonl", optional=True
        ),
    )
    log_bytes: int | None = field(
        default=256 << 20,
        metadata=_described(
            byte_count,
            "bytes of a run's logs, long texts of the code in blobs/ included; then such texts are cut",
            optional=True,
            least=1,
            most=_MOST_COUNT,
        ),
    )
    on_event: Callable[[Event], object] | None = field(
        default=None,
        metadata=_described(
            event_function,
            "called with each Event in the event loop, plain or async; a plain one must not block",
            optional=True,
        ),
    )
    prompts: Prompts | None = field(
        default=None, metadata=_described(prompt_texts, "other texts for the supervisor", optional=True)
    )
    tools: Mapping[str, Tool] | None = field(
        default=None,
        metadata=_described(
            tool_functions,
            "more functions for the code, by name: a function runs in the sandbox, a HostTool in the engine",
            optional=True,
        ),
    )

    def __post_init__(self) -> None:
        for name, option in options().items():
            # A frozen dataclass has no other way to keep a checked value, such as 3.0 for 3.
            object.__setattr__(self, name, option.checked(getattr(self, name)))

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> RunConfig:
        """Return the config of options by name.

        Raises:
            TaskError: an option is unknown or wrong.
        """
        unchecked: Any = _named(values)
        return cls(**unchecked)

    def override(self, values: Mapping[str, object]) -> RunConfig:
        """Return a copy with other values for options that have their default here.

        Raises:
            TaskError: an option is given twice, unknown or wrong.
        """
        unchecked: Any = _named(values)
        for name in unchecked:
            # A dataclass does not record which options were given. One at its default can be replaced.
            if _is_other(getattr(self, name), option_of(name).default):
                raise TaskError(f"{name} is given twice: in config and as {name}=; remove one of them")
        return replace(self, **unchecked)


# Its type tells an option that was not given from one that was given its default.
class Default:
    """The default of a keyword in a signature: it reads as its value."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


@once
def options() -> Mapping[str, Option]:
    """Return each option by name."""
    return {
        each.name: replace(each.metadata["option"], name=each.name, default=each.default)
        for each in fields(RunConfig)
    }


def option_of(name: str) -> Option:
    """Return one option."""
    return options()[name]


def _is_other(value: object, default: object) -> bool:
    try:
        return bool(value != default)
    # A path of the caller's class may raise anything.
    except Exception:
        return True


def _named(values: Mapping[str, object]) -> dict[str, object]:
    try:
        given = [(cast(object, name), values[name]) for name in values]
    except Exception as error:
        raise TaskError(f"the options cannot be read: {describe(values)} raised an error") from error
    found: dict[str, object] = {}
    for key, value in given:
        if not isinstance(key, str):
            reject("an option's name", key, "text")
        # Without the methods of a subclass.
        name = str.__str__(key)
        found[name] = value
        if name not in options():
            name = shorten(one_line(name[:_MOST_SHOWN]), _MOST_SHOWN)
            near = difflib.get_close_matches(name, options(), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(options())}"
            raise TaskError(f"unknown option {name}; {hint}")
    return found


def option_list(margin: int) -> str:
    """Return a docstring section of all options, indented by ``margin`` spaces."""
    heading = " " * margin + "Options (with their defaults):\n"
    lines = [f"{name} ({option.default!r}): {option.doc}." for name, option in options().items()]
    return heading + indent("\n".join(lines), " " * (margin + 4))


def pydantic_field(name: str, *, note: str = "", **changes: Any) -> Any:
    """Return an option as a pydantic field; ``changes`` replace arguments of ``pydantic.Field``."""
    from pydantic import Field

    option = option_of(name)
    arguments: dict[str, Any] = {
        "ge": option.least,
        "gt": option.above,
        "le": option.most,
        "description": f"{option.doc}; {note}" if note else option.doc,
    }
    # pydantic takes a default or a factory, not both.
    if "default_factory" not in changes:
        arguments["default"] = option.default
    if option.check is number:
        # As in option.number: NaN and infinity are no limits.
        arguments["allow_inf_nan"] = False
    # A cast, since the overloads of Field take no dict of arguments.
    return cast(Any, Field)(**arguments | changes)


# The options have one place, the fields above; ``help(RunConfig)`` shows them as well.
RunConfig.__doc__ = f"{RunConfig.__doc__ or ''}\n{option_list(4)}\n"

DEFAULTS: Any = SimpleNamespace(**{name: Default(option.default) for name, option in options().items()})
"""The ``Default`` of each option by name, for the signatures of functions."""
