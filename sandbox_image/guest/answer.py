"""The text of an answer."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
from collections.abc import Set as AbstractSet
from typing import Any, cast

# By the name of a type: what it is written as. Libraries may not be there.
_CONVERSIONS = {
    "ndarray": ".tolist()",
    "Series": ".tolist()",
    "Index": ".tolist()",
    "DataFrame": '.to_dict("records")',
}


def answer_text(answer: object) -> str:
    """Return text as it is, a number by ``str``, lists and dicts as JSON.

    Raises:
        TypeError, ValueError: it cannot be written; the message says what to pass.
    """
    match answer:
        case str():
            return answer
        case numbers.Number() if not _is_finite(answer):
            raise ValueError(f"FINAL takes a finite number, not {answer}: pass None or text instead")
        case bool() | numbers.Number() | None:
            return str(answer)
        case list() | tuple() | dict():
            return _json(cast("object", answer))
        case _:
            raise TypeError(f"FINAL takes text or plain data, not {_kind(answer)}; {_advice(answer)}")


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    # An int may be too large for a float, and a complex number is none.
    except (OverflowError, TypeError):
        return True
    # A Decimal that signals.
    except ValueError:
        return False


def _json(answer: object) -> str:
    try:
        return json.dumps(answer, ensure_ascii=False, allow_nan=False, default=_plain)
    except _NotPlain as error:
        raise TypeError(str(error)) from None
    except ValueError as error:
        if "float" in str(error):
            raise ValueError(
                "FINAL takes data that JSON can hold, and this has nan or inf: pass None or text instead"
            ) from None
        raise TypeError(f"FINAL takes text or plain data; this cannot be written as JSON: {error}") from None
    except (TypeError, RecursionError) as error:
        raise TypeError(f"FINAL takes text or plain data; this cannot be written as JSON: {error}") from None


class _NotPlain(Exception):
    pass


def _plain(value: object) -> object:
    # Numbers of libraries, such as numpy.int64.
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise _NotPlain(
        f"FINAL takes text or plain data, and this holds a value of type {_kind(value)}; {_advice(value)}"
    )


def _kind(value: object) -> str:
    return type(value).__name__


def _advice(value: object) -> str:
    if isinstance(value, AbstractSet):
        return "pass sorted(...) or list(...) of it"
    if isinstance(value, (bytes, bytearray)):
        return "pass its text, .decode()"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "pass dataclasses.asdict(...) of it"
    if _kind(value) in _CONVERSIONS:
        return f"pass {_CONVERSIONS[_kind(value)]} of it"
    return "pass str(...) of it"
