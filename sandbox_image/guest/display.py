"""Show the value of a cell's last expression, and its figures."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, TypeAlias, cast, get_args

from .. import protocol
from ..text import replace_surrogates
from .safe_repr import bounded_repr

_PLAIN_CHARS = 100_000
_NOTE_CHARS = 500
# Two displays are left for the value, and for a note about what was left out.
_MAX_SHOWN = protocol.MAX_DISPLAYS - 2

# As notebooks do. These methods are guest code: an exception becomes text, and the clock of the cell runs on.
_METHODS = {
    "text/html": "_repr_html_",
    "image/svg+xml": "_repr_svg_",
    "image/png": "_repr_png_",
    "image/jpeg": "_repr_jpeg_",
}
_BINARY = get_args(protocol.ImageForm)

_Forms: TypeAlias = dict[str, str | bytes]


class Displays:
    """The displays of one cell, which runs inside this context."""

    def __init__(self, cell: int, most_bytes: int, send: Callable[[protocol.Display], None]) -> None:
        self._cell = cell
        self._most_bytes = self._left = most_bytes
        self._send = send
        self._shown: list[object] = []
        self._room = _MAX_SHOWN
        self._left_out = 0
        self._sent = 0

    def display(self, *values: object, raw: bool = False, **_: object) -> None:
        """Show values now, as IPython's ``display`` does; with ``raw`` they are dicts of MIME types."""
        for value in values:
            if not self._room:
                self._left_out += 1
                continue
            self._room -= 1
            self._shown.append(value)
            self._attempt("showing the value", partial(self._show, _Raw(value) if raw else value))

    def value(self, value: object) -> None:
        """Show the last expression's value, unless it is None."""
        if value is not None:
            self._shown.append(value)
            self._attempt("showing the value", lambda: self._show(value))

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:
            # An interrupted cell has no time left to draw.
            draw = kind is None or not issubclass(kind, KeyboardInterrupt)
            self._attempt("showing the figures", lambda: self._end_figures(pyplot, draw=draw))
        if self._left_out:
            note = f"[{self._left_out} more displays left out: {_MAX_SHOWN} of a cell are shown]"
            self._fit_and_send({}, [note])

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        notes: list[str] = []
        _attempt(what, notes, action)
        if notes:
            self._fit_and_send({}, notes)

    def _end_figures(self, pyplot: ModuleType, *, draw: bool) -> None:
        try:
            numbers: list[int] = pyplot.get_fignums() if draw else []
            for number in numbers[: self._room]:
                figure = pyplot.figure(number)
                if not any(figure is shown for shown in self._shown):
                    self._show(figure)
            if len(numbers) > self._room:
                count = len(numbers) - self._room
                note = f"[{count} more figures left out: {_MAX_SHOWN} of a cell are shown]"
                self._fit_and_send({}, [note])
        finally:
            pyplot.close("all")

    def _show(self, value: object) -> None:
        notes: list[str] = []
        self._fit_and_send(_forms(value, notes), notes)

    def _fit_and_send(self, forms: _Forms, notes: list[str]) -> None:
        if self._sent == protocol.MAX_DISPLAYS:
            return
        self._sent += 1
        # The plain text comes first, and names what does not fit.
        first = str(forms.pop("text/plain", ""))
        room = self._left - len(first.encode())
        kept: _Forms = {}
        for mime, form in forms.items():
            size = len(form.encode()) if isinstance(form, str) else len(form)
            if size <= room:
                kept[mime] = form
                room -= size
                self._left -= size
            else:
                limit = f"larger than what is left of {self._most_bytes}"
                notes.append(f"[{mime} of {size} bytes left out: {limit}]")
        shown = "\n".join(filter(None, [first, *notes])).encode()[: self._left].decode(errors="ignore")
        self._left -= len(shown.encode())
        text = {mime: form for mime, form in kept.items() if isinstance(form, str)}
        images = {mime: form for mime, form in kept.items() if isinstance(form, bytes)}
        self._send(protocol.Display(self._cell, {"text/plain": shown, **text}, images))  # type: ignore[arg-type, dict-item]  # pyright: ignore[reportArgumentType]  # `_forms` makes no other keys


class _Raw:
    # A dict of MIME types that is to be shown as such.

    def __init__(self, forms: object) -> None:
        self._forms = forms

    def __repr__(self) -> str:
        return repr(self._forms)

    def _repr_mimebundle_(self, **_: object) -> object:
        return self._forms


def _forms(value: object, notes: list[str]) -> _Forms:
    bundle = _call(value, "_repr_mimebundle_", notes, include=None, exclude=None)
    given = cast("dict[object, object]", bundle) if isinstance(bundle, dict) else {}
    own = given.get("text/plain")
    if not isinstance(own, str):
        own = _attempt("repr", notes, lambda: bounded_repr(value, _PLAIN_CHARS))
    forms: _Forms = {"text/plain": _cut(own or "")}
    for mime, method in _METHODS.items():
        if mime == "image/jpeg" and "image/png" in forms:  # Pillow offers both
            continue
        form = given[mime] if mime in given else _call(value, method, notes)
        if isinstance(form, bytes if mime in _BINARY else str):
            forms[mime] = replace_surrogates(form) if isinstance(form, str) else form
    if "image/png" not in forms and _is_figure(value):
        drawing = _attempt("drawing the figure", notes, lambda: _draw(value))
        forms |= {"image/png": drawing} if drawing else {}
    return forms


def _call(value: object, method: str, notes: list[str], **arguments: None) -> object:
    function = getattr(type(value), method, None)
    if function is None:
        return None
    form: object = _attempt(method, notes, lambda: function(value, **arguments))
    if isinstance(form, tuple):  # the form and its metadata
        return next(iter(cast("tuple[object, ...]", form)), None)
    return form


def _attempt(what: str, notes: list[str], action: Callable[[], Any]) -> Any:
    try:
        return action()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        reason = "".join(traceback.format_exception_only(error)).strip()
        notes.append(f"[{what} failed: {replace_surrogates(reason[:_NOTE_CHARS])}]")


def _cut(text: str) -> str:
    text = replace_surrogates(text)
    if len(text) <= _PLAIN_CHARS:
        return text
    return f"{text[:_PLAIN_CHARS]}\n[... cut after {_PLAIN_CHARS} characters]"


def _is_figure(value: object) -> bool:
    module = sys.modules.get("matplotlib.figure")
    return module is not None and isinstance(value, module.Figure)


def _draw(figure: Any) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png", bbox_inches="tight")
    return image.getvalue()
