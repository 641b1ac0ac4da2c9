"""Check plain data against pydantic models; report each mistake on a line in plain words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from ..sandbox_image.text import shorten
from .errors import TaskError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

T = TypeVar("T", bound=BaseModel)

_MOST_SHOWN = 60

# A union puts the name of each of its types into the place of an error: ("context", "list[json]", 0).
_UNION_MEMBER = re.compile(
    r"str|int|float|bool|none|literal\[.*|(list|dict|tuple|set|tagged-union|function-before)\[.*"
)

VARIABLE_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
MODULE_FUNCTION = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"
# The value is not shown: it may be a key.
_PATTERNS = {
    VARIABLE_NAME: "must be the name of an environment variable, such as OPENAI_API_KEY",
    MODULE_FUNCTION: "must be module:function, such as my_tools:record",
}
_EXPECTED = {
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "byte_size": 'a number of bytes, or text such as "512MiB"',
    "byte_size_unit": 'a number of bytes, or text such as "512MiB"',
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_attributes_type": "an object",
    "model_type": "an object",
    "string_type": "text",
}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
}
_ROLES = frozenset({"supervisor", "worker", "judge"})
_NUMBERS = frozenset({"int_type", "float_type"})


class Options(BaseModel):
    """Frozen options that a program fills in by keyword.

    Raises:
        TaskError: an option is unknown or has a wrong value. The one line names all of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # Type checkers derive the constructor from the fields.
    if not TYPE_CHECKING:

        def __init__(self, *unnamed: object, **values: object) -> None:
            if unnamed:
                raise TaskError(_takes_keywords(type(self), unnamed[0]))
            try:
                super().__init__(**values)
            except ValidationError as error:
                kind = type(self)
                elsewhere = [kind.place_of(name) for name in values if name not in kind.model_fields]
                mistakes = list(filter(None, elsewhere)) or explain(error, kind)
                raise TaskError(f"{kind.__name__}: {'; '.join(mistakes)}") from None

        # As a part of a file, a model is built by pydantic, which then says where in the file a mistake is.
        __init__.__pydantic_base_init__ = True
        # What help() shows, to which pydantic adds the fields.
        __init__.__signature__ = signature(lambda self, **values: None)

    @classmethod
    def place_of(cls, name: str) -> str:
        """Return where an option of another object belongs, in words; or nothing."""
        return ""


def _takes_keywords(model: type[Options], value: object) -> str:
    name = model.__name__
    for field in model.model_fields:
        try:
            model(**{field: value})
        except TaskError:
            continue
        shown = shorten(repr(value), _MOST_SHOWN) if isinstance(value, (str, int, float)) else "..."
        return f"{name} takes keywords: {name}({field}={shown})"
    return f"{name} takes keywords: {name}({next(iter(model.model_fields))}=...)"


def checked(model: type[T], value: object, complaint: str) -> T:
    """Return plain data as a model.

    Raises:
        TaskError: the complaint, then a line for each mistake.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        lines = [f"{complaint}:", *(f"  {line}" for line in explain(error, model))]
        raise TaskError("\n".join(lines)) from None


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return each mistake as ``key.key: what is wrong``."""
    lines: list[str] = []
    unions: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for problem in error.errors():
        place = [str(part) for part in problem["loc"]]
        member = next((n for n, part in enumerate(place) if _UNION_MEMBER.fullmatch(part)), None)
        if member is not None and member == len(place) - 1:
            unions.setdefault(tuple(place[:member]), []).append(problem)
            continue
        if member is not None:
            # The value has the type of this member, and is wrong inside.
            del place[member]
        is_unknown = problem["type"] == "extra_forbidden"
        lines.append(_line(place, _unknown_key(place, model) if is_unknown else in_plain_words(problem)))
    for where, problems in unions.items():
        # A line about the inside of a value says more than the other types that it could have had.
        line = _line(where, _one_of(problems))
        if not any(other.startswith(line.partition(":")[0] + ".") for other in lines):
            lines.append(line)
    return lines


def in_plain_words(problem: ErrorDetails) -> str:
    """Return what is wrong with a value."""
    kind, context, value = problem["type"], problem.get("ctx", {}), problem["input"]
    if kind in _EXPECTED:
        remedy = "; remove the quotes" if kind in _NUMBERS and isinstance(value, str) else ""
        return f"must be {_EXPECTED[kind]}, not {_shown(value)}{remedy}"
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"must be {words} {_bound(context[key], value)}, not {_shown(value)}"
    match kind:
        case "literal_error":
            return f"must be {context['expected']}, not {_shown(value)}"
        case "missing":
            return "is missing"
        case "string_pattern_mismatch" if context["pattern"] in _PATTERNS:
            return _PATTERNS[context["pattern"]]
        case "string_too_short":
            return "is empty"
        case "union_tag_invalid":
            key = context["discriminator"].strip("'")
            known = [each.strip("' ") for each in context["expected_tags"].split(",")]
            near = difflib.get_close_matches(str(context["tag"]), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"{key} must be one of {context['expected_tags']}, not {_shown(context['tag'])}{hint}"
        case "union_tag_not_found":
            return f"{context['discriminator'].strip(chr(39))} is missing; it names the kind of model"
        case _:
            return problem["msg"].removeprefix("Value error, ")


def _line(place: Sequence[str], text: str) -> str:
    # After a role pydantic names the handler, which is no key of the file.
    keys = [key for n, key in enumerate(place) if not (n == 1 and place[0] in _ROLES and n < len(place) - 1)]
    return f"{'.'.join(keys)}: {text}" if keys else text


def _one_of(problems: Sequence[ErrorDetails]) -> str:
    expected = [_EXPECTED.get(each["type"]) or each.get("ctx", {}).get("expected") for each in problems]
    known = [each for each in expected if each]
    sentences = [in_plain_words(each) for each in problems if each["type"] == "value_error"]
    if sentences and len(known) + len(sentences) == len(problems):
        return f"{' or '.join(sentences)}, or {', '.join(known)}" if known else " or ".join(sentences)
    if len(known) < len(expected):
        return " or ".join(in_plain_words(each) for each in problems)
    names = known[0] if len(known) == 1 else f"{', '.join(known[:-1])} or {known[-1]}"
    return f"must be {names}, not {_shown(problems[0]['input'])}"


def _shown(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return shorten(repr(value), _MOST_SHOWN)
        case str():
            return shorten(repr(value), _MOST_SHOWN)
        case Mapping():
            return "an object"
        case list():
            return "a list"
        case _:
            return f"a value of type {type(value).__name__}"


def _bound(number: float, value: object) -> str:
    # A size that was written as "1MiB" gets its bound in the same unit.
    if isinstance(value, str) and number >= 1024:
        for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
            if number % size == 0:
                return f"{number // size:.0f}{unit}"
    return f"{number:,.15g}"


def _unknown_key(place: Sequence[str], model: type[BaseModel]) -> str:
    *parents, key = place
    known = sorted(_keys_at(model, parents))
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown key; did you mean `{near[0]}`?" if near else f"unknown key; known are {', '.join(known)}"


def _keys_at(model: type[BaseModel], path: list[str]) -> set[str]:
    # The path holds keys of the file and the tags of unions.
    keys = {field.alias or name for name, field in model.model_fields.items()}
    if not path:
        return keys
    field = model.model_fields.get(path[0])
    if field is None:
        return keys
    # Of a union of models, the tag `handler` picks one.
    models = [part for part in _types_in(field.annotation) if issubclass(part, BaseModel)]
    for candidate in models:
        tag = candidate.model_fields.get("handler")
        if len(models) == 1:
            return _keys_at(candidate, path[1:])
        if tag is not None and len(path) > 1 and path[1] in get_args(tag.annotation):
            return _keys_at(candidate, path[2:])
    return keys


def _types_in(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for part in get_args(annotation):
        yield from _types_in(part)
