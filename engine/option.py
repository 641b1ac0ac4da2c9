"""The checks of a run's options, and the error for a wrong value."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, NoReturn, cast

from .arguments import describe, reject
from .errors import TaskError

if TYPE_CHECKING:
    from .broker.cache import ResponseCache
    from .sandbox import SandboxConfig
    from .supervisor.prompts import Prompts

Check = Callable[["Option", object], object]
"""Returns the checked value, or raises a ``TaskError`` that names the option."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a run.

    Attributes:
        doc: meaning and unit, one phrase without a full stop.
        optional: whether None is allowed.
        least, most: inclusive bounds.
        above: an exclusive lower bound.
    """

    doc: str
    check: Check
    optional: bool
    least: float | None = None
    above: float | None = None
    most: float | None = None
    name: str = ""
    default: object = None

    def checked(self, value: object) -> object:
        """Return the value, or raise a ``TaskError``."""
        if value is None and self.optional:
            return None
        try:
            return self.check(self, value)
        except TaskError:
            raise
        # The value is the caller's object: its int(), float() or os.fspath() may raise anything.
        except Exception as error:
            problem = f"{self.name} cannot be read: {describe(value)} raised {type(error).__name__}"
            raise TaskError(problem) from error

    def reject(self, value: object, expected: str, remedy: str = "") -> NoReturn:
        """Raise the error for a wrong value."""
        none = " or None" if self.optional else ""
        reject(self.name, value, expected + none, remedy)


def whole_number(option: Option, value: object) -> int:
    """Return an int."""
    # bool is a subclass of int, but True is no number of turns.
    if isinstance(value, bool) or not isinstance(value, Integral):
        option.reject(value, f"a whole number{_range(option)}", _without_quotes(value))
    whole = int(value)
    _check_range(option, whole, "a whole number")
    return whole


def byte_count(option: Option, value: object) -> int:
    """Return an int; a text has a unit, such as "512MiB"."""
    if isinstance(value, str):
        # Inside: --help does not need it.
        from pydantic import ByteSize, TypeAdapter, ValidationError

        try:
            value = int(TypeAdapter(ByteSize).validate_python(value))
        except ValidationError:
            option.reject(value, 'a number of bytes, or text such as "512MiB"')
    return whole_number(option, value)


def number(option: Option, value: object) -> float:
    """Return a finite float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        option.reject(value, f"a number{_range(option)}", _without_quotes(value))
    # NaN passes every comparison with a bound, and infinity is no limit.
    try:
        real = float(value)
    except OverflowError:
        real = math.inf
    if not math.isfinite(real):
        remedy = "use None for no limit" if option.optional else ""
        option.reject(value, f"a finite number{_range(option)}", remedy)
    _check_range(option, real, "a number")
    return real


def _check_range(option: Option, number: float, kind: str) -> None:
    is_low = option.least is not None and number < option.least
    is_at_bound = option.above is not None and number <= option.above
    if is_low or is_at_bound or (option.most is not None and number > option.most):
        option.reject(number, kind + _range(option))


def _range(option: Option) -> str:
    lowest = "" if option.least is None else f" of at least {option.least:,}"
    lowest = lowest if option.above is None else f" above {option.above:,}"
    return lowest + (f" and at most {option.most:,}" if option.most is not None else "")


def _without_quotes(value: object) -> str:
    return "give the number without quotes" if isinstance(value, str) else ""


def flag(option: Option, value: object) -> bool:
    """Return a bool."""
    # Python would read the text "no" as true.
    if not isinstance(value, bool):
        option.reject(value, "True or False")
    return value


def path(option: Option, value: object) -> str | os.PathLike[str]:
    """Return a path that is not empty, as it was given."""
    expected = "a path (str or pathlib.Path)"
    if not isinstance(value, (str, os.PathLike)):
        option.reject(value, expected)
    place = cast("str | os.PathLike[str]", value)
    text = cast(object, os.fspath(place))  # a PathLike can give bytes
    if not isinstance(text, str):
        option.reject(text, expected, "use os.fsdecode(path)")
    if not text or "\0" in text:
        option.reject(text, f"{expected} that is not empty and holds no NUL character")
    return place


def sandbox_config(option: Option, value: object) -> SandboxConfig:
    """Return a ``SandboxConfig``."""
    # Inside: these modules are heavy, and --help does not need them.
    from .sandbox import Sandbox, SandboxConfig, SyncSandbox

    if isinstance(value, (Sandbox, SyncSandbox)):
        # Its state would be another run's, and its context and tools are fixed when it opens.
        option.reject(value, "a SandboxConfig", "a run opens its own sandbox")
    if not isinstance(value, SandboxConfig):
        option.reject(value, "a SandboxConfig", 'give SandboxConfig(memory="1GiB", timeout=60)')
    return value


def mistyped_word(value: str, words: Sequence[str]) -> str | None:
    """Return the word that a value without folder and suffix seems to mean; None for a word or a file."""
    if value in words or "/" in value or "." in value:
        return None
    return next(iter(difflib.get_close_matches(value.lower(), words, n=1)), None)


def answer_cache(option: Option, value: object) -> str | os.PathLike[str] | ResponseCache:
    """Return the place of finished answers."""
    from .broker.cache import ResponseCache

    if isinstance(value, ResponseCache):
        return value
    if not isinstance(value, (str, os.PathLike)):
        option.reject(value, '"run", "off", a path or a ResponseCache')
    if isinstance(value, str) and (near := mistyped_word(value, ("run", "off"))):
        raise TaskError(
            f'{option.name}: did you mean "{near}"? A file of the name {value} needs its folder: ./{value}'
        )
    return path(option, cast(object, value))


def event_function(option: Option, value: object) -> object:
    """Return a function of one event, plain or async."""
    if not callable(value):
        option.reject(value, "a function of one event")
    return value


def prompt_texts(option: Option, value: object) -> Prompts:
    """Return a ``Prompts``."""
    from .supervisor.prompts import Prompts

    if not isinstance(value, Prompts):
        option.reject(value, "a Prompts", "give Prompts(system=...) or Prompts.from_directory(path)")
    return value


def tool_functions(option: Option, value: object) -> object:
    """Return functions by name."""
    from .toolbox.toolbox import Toolbox

    if not isinstance(value, (Mapping, Toolbox)):
        option.reject(value, "a dict of functions by name", 'give {"name": function}')
    return cast(object, value)
