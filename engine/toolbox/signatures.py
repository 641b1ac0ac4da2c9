"""Show the parameters of tools, and check a guest's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args, get_origin

import msgspec
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import core_schema

from ...sandbox_image.text import shorten
from ..errors import TaskError

_MESSAGE_CHARS = 1_000
_SIGNATURE_CHARS = 300
_DOC_CHARS = 1_000

# pydantic's own messages. A user's validator may put anything into its message, so that is not quoted.
_SAFE_TO_QUOTE = frozenset(get_args(core_schema.ErrorType)) - {"value_error", "assertion_error"}


class BadArguments(Exception):
    """Arguments do not fit; the guest gets the text."""


class Parameters:
    """The parameters of a host tool.

    Raises:
        TaskError: an annotation cannot be read, or plain data cannot be checked against it.
    """

    def __init__(self, name: str, function: Callable[..., object]) -> None:
        try:
            self._signature = inspect.signature(function, eval_str=True)
        except (TypeError, ValueError) as error:
            raise TaskError(f"tool {name}: {error}; wrap it in a function of your own") from error
        except Exception as error:  # an annotation is code
            raise TaskError(f"tool {name}: an annotation cannot be read: {error}") from error
        self._checks = dict(self._find_checks(name))

    def _find_checks(self, name: str) -> Iterator[tuple[str, TypeAdapter[Any]]]:
        for parameter in self._signature.parameters.values():
            if parameter.annotation in (parameter.empty, Any):
                continue
            try:
                check = TypeAdapter[Any](parameter.annotation)
                _ = check.core_schema["type"]  # an unknown name inside of a type is noticed at the first use
                yield parameter.name, check
            except PydanticUserError:
                raise TaskError(
                    f"tool {name}: plain data cannot be checked against the annotation of its parameter "
                    f"{parameter.name}; annotate it with a plain type, or with Any"
                ) from None

    def bind(self, args: Sequence[Any], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        """Bind and check arguments.

        Raises:
            BadArguments: the number, a name or a type is wrong.
        """
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise BadArguments(shorten(str(error), _MESSAGE_CHARS)) from None
        for name, value in bound.arguments.items():
            check = self._checks.get(name)
            if check is None:
                continue
            match self._signature.parameters[name].kind:
                case inspect.Parameter.VAR_POSITIONAL:
                    checked: Any = tuple(_checked(check, name, each) for each in value)
                case inspect.Parameter.VAR_KEYWORD:
                    checked = {key: _checked(check, key, each) for key, each in value.items()}
                case _:
                    checked = _checked(check, name, value)
            bound.arguments[name] = checked
        return bound


def _checked(check: TypeAdapter[Any], name: str, value: Any) -> Any:
    try:
        # As strict as JSON allows: a list may become a tuple, text a date, but text no number.
        return check.validate_json(msgspec.json.encode(value), strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        raise BadArguments(
            shorten("; ".join(_problem_text(name, each) for each in problems), _MESSAGE_CHARS)
        ) from None


def _problem_text(name: str, problem: Any) -> str:
    place = name + "".join(f"[{part!r}]" for part in problem["loc"])
    return f"{place}: {problem['msg'] if problem['type'] in _SAFE_TO_QUOTE else 'is not accepted'}"


def show_signature(function: Callable[..., object]) -> str:
    """Return the parameters as ``(query: str, limit: int = 10) -> list[str]``."""
    try:
        signature = inspect.signature(function, eval_str=True)
    # An annotation is code and may fail. Then its text is shown.
    except Exception:
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return "(...)"
    shown = [each.replace(default=_shown_default(each)) for each in signature.parameters.values()]
    return shorten(str(signature.replace(parameters=shown)), _SIGNATURE_CHARS)


def show_doc(function: Callable[..., object], description: str | None = None) -> str:
    """Return the description, else the docstring's first paragraph, on one line."""
    if description is None:
        docstring = inspect.getdoc(function.func if isinstance(function, partial) else function) or ""
        description = docstring.split("\n\n")[0]
    return shorten(" ".join(description.split()), _DOC_CHARS)


class _Hidden:
    def __repr__(self) -> str:
        return "..."


def _shown_default(parameter: inspect.Parameter) -> Any:
    # Text and objects stay hidden: they may be keys.
    value = parameter.default
    if value is parameter.empty or value is None or type(value) in (bool, int, float):
        return value
    return value if get_origin(parameter.annotation) is Literal else _Hidden()
