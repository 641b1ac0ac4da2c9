"""Decide by name and first bytes what a file is."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import PurePath

from ..errors import TaskError


class Kind(Enum):
    """How a file is read. A zip archive is looked into by the converter."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"
    PDF = "pdf"
    ZIP = "zip"


SUPPORTED = "text in any encoding, .json, .html, .pdf, .docx, .xlsx, .pptx, .odt, .ods, .odp and .epub"

_HTML = (".html", ".htm", ".xhtml")
_HTML_START = re.compile(rb"\s*(<\?xml[^>]{0,200}\?>\s*)?(<!doctype\s+html|<html[\s>])", re.IGNORECASE)
# Names that a converter reads. If the bytes are text, they are read as text.
_DOCUMENTS = (".pdf", ".docx", ".docm", ".xlsx", ".xlsm", ".pptx", ".odt", ".ods", ".odp", ".epub")
_OFFICE_MAGIC = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_REFUSED = (
    (b"{\\rtf", "it is an RTF file; save it as .docx, .pdf or .txt"),
    (b"\x1f\x8b", "it is compressed; unpack it"),
    (b"BZh", "it is compressed; unpack it"),
    (b"\xfd7zXZ\0", "it is compressed; unpack it"),
    (b"\x28\xb5\x2f\xfd", "it is compressed; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "it is an archive; unpack it and name its folder"),
    (b"Rar!\x1a\x07", "it is an archive; unpack it and name its folder"),
    (b"\x89PNG\r\n", "it is an image; text in images is not recognised"),
    (b"\xff\xd8\xff", "it is an image; text in images is not recognised"),
    (b"GIF8", "it is an image; text in images is not recognised"),
)


def kind_of(name: str, data: bytes) -> Kind:
    """Return what a file is.

    Raises:
        TaskError: it cannot be read as text. The message does not name the file.
    """
    suffix = PurePath(name).suffix.lower()
    # A PDF may have some bytes before its header.
    if data.startswith(b"%PDF-") or (suffix == ".pdf" and b"%PDF-" in data[:1024]):
        return Kind.PDF
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Kind.ZIP
    if data.startswith(_OFFICE_MAGIC):
        raise TaskError(_old_office(data))
    for magic, reason in _REFUSED:
        if data.startswith(magic):
            raise TaskError(reason)
    if suffix == ".json":
        return Kind.JSON
    is_nameless = suffix not in (".txt", ".md")
    if suffix in _HTML or (is_nameless and _HTML_START.match(data[:1024])):
        return Kind.HTML
    if suffix in _DOCUMENTS and not data.strip():
        raise TaskError("it is empty")
    return Kind.TEXT


def is_misnamed(name: str) -> bool:
    """Return whether the name of a text file is that of a document."""
    return PurePath(name).suffix.lower() in _DOCUMENTS


def _old_office(data: bytes) -> str:
    # A password puts a new Office file into the container of the old ones.
    if "EncryptedPackage".encode("utf-16-le") in data:
        return "it needs a password; save a copy without one"
    return "it is an old Office file (.doc, .xls or .ppt); save it as .docx, .xlsx or .pptx"
