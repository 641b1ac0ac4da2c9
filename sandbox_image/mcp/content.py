"""Results as a model sees them: text that is cut to a size, and images."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from mcp.types import BlobResourceContents, ContentBlock, EmbeddedResource, ImageContent, TextContent

from ..protocol import Outcome
from ..text import excerpt
from .session import Cell

IMAGE_BYTES = 5 << 20
"""The largest image that is passed on; model providers take no larger ones."""

_IMAGES = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/jpeg": b"\xff\xd8\xff",
    "image/gif": b"GIF8",
    "image/webp": b"RIFF",
}
"""Mime types of images that models see, and how such files begin."""

_TEXTS = ("text/markdown", "text/plain", "text/html", "image/svg+xml", "application/json")

_ENDS = {
    Outcome.TIMEOUT: "The code was stopped: it took longer than {timeout:g} s.",
    Outcome.OOM: "The code was killed: it needed more memory than there is.",
    Outcome.OUTPUT_LIMIT: "The code was stopped: it wrote too much output.",
    Outcome.RESOURCE_LIMIT: "The code came up against a limit on processes, files or processor time.",
    Outcome.CRASHED: "The Python process crashed.",
    Outcome.KILLED: "The Python process was stopped.",
    Outcome.PROTOCOL_VIOLATION: "The Python process was ended: it broke the rules of its connection.",
}


def contents(cell: Cell, *, timeout: float, limit: int, keeps_files: bool) -> list[ContentBlock]:
    """Return a result as blocks: stdout, displays, stderr, the error, and how it ended if it did not end well.

    Args:
        cell: the result.
        timeout: seconds that the code was given.
        limit: characters of each text; what is longer is cut in the middle.
        keeps_files: whether files outlive the interpreter.
    """
    blocks: list[ContentBlock] = [text(cell.stdout, limit)] if cell.stdout else []
    blocks += [_shown(bundle, limit) for bundle in cell.display]
    if cell.stderr:
        blocks.append(text(f"stderr:\n{excerpt(cell.stderr, limit)}"))
    if cell.error is not None:
        blocks.append(text(cell.error.traceback, limit))
    end = _end(cell, timeout, keeps_files=keeps_files)
    if end or not blocks:
        blocks.append(text(end or "(no output)"))
    return blocks


def _end(cell: Cell, timeout: float, *, keeps_files: bool) -> str:
    if cell.outcome not in _ENDS:
        return ""
    how = _ENDS[cell.outcome].format(timeout=timeout) + (f" Why: {cell.detail}." if cell.detail else "")
    return f"{how} {after_a_loss(keeps_files=keeps_files) if cell.lost else 'The variables are kept.'}"


def after_a_loss(*, keeps_files: bool) -> str:
    """Return the text for a client whose interpreter was replaced."""
    lost = "Every variable is lost, the files are kept" if keeps_files else "Every variable and file is lost"
    return f"{lost}; a new session has begun."


def text(value: str, limit: int | None = None) -> TextContent:
    """Return a block of text, cut if there is a limit."""
    return TextContent(text=value if limit is None else excerpt(value, limit))


def file_content(uri: str, data: bytes) -> ContentBlock:
    """A file: an image as one, UTF-8 as text, anything else as an embedded resource. Nothing of it is cut."""
    for mime, head in _IMAGES.items():
        if data.startswith(head) and len(data) <= IMAGE_BYTES:
            return ImageContent(data=base64.b64encode(data).decode(), mime_type=mime)
    try:
        return text(data.decode())
    except UnicodeDecodeError:
        blob = base64.b64encode(data).decode()
        resource = BlobResourceContents(uri=uri, mime_type="application/octet-stream", blob=blob)
        return EmbeddedResource(resource=resource)


def _shown(bundle: Mapping[str, str | bytes], limit: int) -> ContentBlock:
    """Choose the form of a value: an image first, then text."""
    for mime in _IMAGES:
        if mime in bundle:
            return _image(mime, bundle[mime])
    for mime in _TEXTS:
        value = bundle.get(mime)
        if isinstance(value, str):
            return text(value, limit)
    return text(f"[a value of type {', '.join(sorted(bundle)) or 'none'}, which cannot be shown]", limit)


def _image(mime: str, value: str | bytes) -> ContentBlock:
    """Bytes, or base64 of them as notebooks have it."""
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else value
    except ValueError:
        return text("[an image that is no base64]")
    if not data.startswith(_IMAGES[mime]):
        return text(f"[{mime} that is none]")
    if len(data) > IMAGE_BYTES:
        return text(f"[an image of {len(data)} bytes, more than the {IMAGE_BYTES} that can be shown]")
    return ImageContent(data=base64.b64encode(data).decode(), mime_type=mime)
