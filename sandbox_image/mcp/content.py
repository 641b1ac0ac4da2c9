"""Turn results into MCP content for a model."""

from __future__ import annotations

import base64
from collections.abc import Generator, Mapping

from mcp.types import BlobResourceContents, ContentBlock, EmbeddedResource, ImageContent, TextContent

from ..protocol import Outcome
from ..terminal_text import terminal_text
from ..text import excerpt
from .session import Cell

# Model providers accept no larger images.
IMAGE_BYTES = 5 << 20

# How files of these types begin. Models see no other images.
_IMAGES = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/jpeg": b"\xff\xd8\xff",
    "image/gif": b"GIF8",
    "image/webp": b"RIFF",
}

# By preference.
_TEXTS = ("text/markdown", "text/plain", "text/html", "image/svg+xml", "application/json")

_ENDINGS = {
    Outcome.TIMEOUT: "The code was stopped: it took longer than {timeout:g} s.",
    Outcome.OOM: "The code was killed: it needed more memory than there is.",
    Outcome.OUTPUT_LIMIT: "The code was stopped: it wrote too much output.",
    Outcome.RESOURCE_LIMIT: "The code reached a limit on processes, files or processor time.",
    Outcome.CRASHED: "The Python process crashed.",
    Outcome.KILLED: "The Python process was stopped.",
    Outcome.PROTOCOL_VIOLATION: "The Python process was ended: it broke the rules of its connection.",
}


def contents(
    cell: Cell, *, timeout: float, limit: int, keeps_files: bool
) -> Generator[None, None, list[ContentBlock]]:
    """Return the blocks of a cell's result, in steps.

    Args:
        timeout: the limit in seconds.
        limit: characters of each text; longer ones are cut in the middle.
        keeps_files: whether files outlive the interpreter.
    """
    # As a terminal shows it: a progress bar of 10,000 updates is one line.
    stdout = yield from terminal_text(cell.stdout)
    blocks: list[ContentBlock] = [text(stdout, limit)] if stdout else []
    for bundle in cell.display:
        block = yield from _display(bundle, limit)
        blocks.append(block)
    stderr = yield from terminal_text(cell.stderr)
    if stderr:
        blocks.append(text(f"stderr:\n{excerpt(stderr, limit)}"))
    if cell.error is not None:
        blocks.append(text((yield from terminal_text(cell.error.traceback)), limit))
    end = _ending(cell, timeout, keeps_files=keeps_files)
    if end or not blocks:
        blocks.append(text(end or "(no output)"))
    return blocks


def _ending(cell: Cell, timeout: float, *, keeps_files: bool) -> str:
    if cell.outcome not in _ENDINGS:
        return ""
    # A limit that the cell survived is explained by its own sentence.
    is_known = cell.outcome in (Outcome.TIMEOUT, Outcome.OUTPUT_LIMIT) and not cell.lost
    why = f" Why: {cell.detail}." if cell.detail and not is_known else ""
    how = _ENDINGS[cell.outcome].format(timeout=timeout) + why
    if cell.lost:
        return f"{how} {new_session_text(keeps_files=keeps_files)}"
    return f"{how} The variables are kept."


def new_session_text(*, keeps_files: bool) -> str:
    """Return the text about a new interpreter."""
    lost = "Every variable is lost, the files are kept" if keeps_files else "Every variable and file is lost"
    return f"{lost}; a new session has begun."


def text(value: str, limit: int | None = None) -> TextContent:
    """Return a block of text of at most ``limit`` characters."""
    return TextContent(text=value if limit is None else excerpt(value, limit))


def file_content(uri: str, data: bytes) -> ContentBlock:
    """Return a whole file as an image, as text if it is UTF-8, else as a resource."""
    for mime, signature in _IMAGES.items():
        if data.startswith(signature) and len(data) <= IMAGE_BYTES:
            return ImageContent(data=base64.b64encode(data).decode(), mime_type=mime)
    try:
        return text(data.decode())
    except UnicodeDecodeError:
        blob = base64.b64encode(data).decode()
        resource = BlobResourceContents(uri=uri, mime_type="application/octet-stream", blob=blob)
        return EmbeddedResource(resource=resource)


def _display(bundle: Mapping[str, str | bytes], limit: int) -> Generator[None, None, ContentBlock]:
    # An image first: its text is only a name, such as <Figure>.
    for mime in _IMAGES:
        if mime in bundle:
            return _image(mime, bundle[mime])
    for mime in _TEXTS:
        value = bundle.get(mime)
        if isinstance(value, str):
            shown = (yield from terminal_text(value)) if mime == "text/plain" else value
            return text(shown, limit)
    return text(f"[a value of type {', '.join(sorted(bundle)) or 'none'}, which cannot be shown]", limit)


def _image(mime: str, value: str | bytes) -> ContentBlock:
    try:
        # Notebooks use base64.
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else value
    except ValueError:
        return text("[an image that is not valid base64]")
    if not data.startswith(_IMAGES[mime]):
        return text(f"[a value that is not {mime}]")
    if len(data) > IMAGE_BYTES:
        return text(f"[an image of {len(data)} bytes, more than the {IMAGE_BYTES} that can be shown]")
    return ImageContent(data=base64.b64encode(data).decode(), mime_type=mime)
