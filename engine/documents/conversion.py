"""Convert a document to text. This file is executed in a sandbox, and no part of the engine imports it.

It writes the text to ``/work/text``, or raises ``Refused`` with the reason.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree as ET

_OFFICE = "{urn:oasis:names:tc:opendocument:xmlns:office:1.0}"
_TEXT = "{urn:oasis:names:tc:opendocument:xmlns:text:1.0}"
_TABLE = "{urn:oasis:names:tc:opendocument:xmlns:table:1.0}"
_SLIDE = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_DRAWING = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_NUMBER = re.compile(r"\d+")
# Declared sizes. A file that declares less still meets the limits on memory and time.
_MOST_UNPACKED = 512 << 20
_MOST_MEMBERS = 20_000
_MOST_TAGS = 900_000


class Refused(Exception):
    """The document has no text to give; the message says why."""


def convert(kind: str, data: bytes, most: int) -> None:
    """Write the text of a document, at most ``most`` bytes, to ``/work/text``.

    Raises:
        Refused: it has no text to give.
    """
    try:
        _write(_CONVERTERS[kind](data), most)
    except (Refused, MemoryError):
        raise
    except RecursionError as error:
        raise Refused("it is nested too deeply") from error
    except Exception as error:  # libraries raise anything for a damaged file
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise Refused(f"it is damaged, or no such file ({reason})") from error


def _write(pieces: Iterable[str], most: int) -> None:
    size = 0
    with open("/work/text", "wb") as file:
        for piece in pieces:
            encoded = piece.encode("utf-8", "replace")
            size += len(encoded)
            if size > most:
                raise Refused(f"its text is larger than {most >> 20} MiB; split it")
            file.write(encoded)


def _pdf(data: bytes) -> Iterator[str]:
    pdfium: Any = import_module("pypdfium2")
    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if "password" in str(error).lower():
            raise Refused("it needs a password; save a copy without one") from error
        raise Refused(f"it is a damaged PDF ({error})") from error
    has_text = False
    for number in range(len(document)):
        page = document[number]
        found = page.get_textpage()
        text = found.get_text_bounded().replace("\r\n", "\n")
        has_text = has_text or bool(text.strip())
        yield text if number == 0 else f"\f{text}"
        found.close()
        page.close()
    if not has_text:
        raise Refused(
            f"it has no text (pages: {len(document)}), only images or nothing; "
            "text in images is not recognised: do that first, as with ocrmypdf"
        )


def _zip(data: bytes) -> Iterable[str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        unpacked = sum(each.file_size for each in members)
        if unpacked > _MOST_UNPACKED or len(members) > _MOST_MEMBERS:
            raise Refused(
                f"it unpacks to {unpacked >> 20:,} MiB in {len(members):,} files: a zip bomb is not unpacked"
            )
        names = {each.filename for each in members}
        if any(each.flag_bits & 1 for each in members):
            raise Refused("it needs a password; save a copy without one")
        for name, found in _IN_ARCHIVE.items():
            if name in names:
                yield from found(archive)
                return
    raise Refused("it is an archive, and no .docx, .xlsx, .pptx, .odt, .ods, .odp or .epub; unpack it")


def _docx(archive: zipfile.ZipFile) -> Iterator[str]:
    mammoth: Any = import_module("mammoth")

    def no_image(_image: object) -> list[object]:
        return []

    html = mammoth.convert_to_html(archive.fp, convert_image=no_image).value
    yield _markdown(html)


def _xlsx(archive: zipfile.ZipFile) -> Iterator[str]:
    openpyxl: Any = import_module("openpyxl")
    book = openpyxl.load_workbook(archive.fp, read_only=True, data_only=True)
    for number, sheet in enumerate(book.worksheets):
        # The size that the file names may be wrong.
        sheet.reset_dimensions()
        yield _title(number, sheet.title)
        yield from _rows(sheet.iter_rows(values_only=True))


def _title(number: int, title: str) -> str:
    return f"## {title}\n" if number == 0 else f"\n## {title}\n"


def _rows(rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    empty = 0
    for row in rows:
        values = ["" if value is None else str(value) for value in row]
        while values and not values[-1]:
            values.pop()
        # Empty rows count only between others.
        if not values:
            empty += 1
            continue
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(values)
        yield "\n" * min(empty, 1) + line.getvalue()
        empty = 0


def _pptx(archive: zipfile.ZipFile) -> Iterator[str]:
    slides = [name for name in archive.namelist() if re.fullmatch(r"ppt/slides/slide\d+\.xml", name)]
    slides.sort(key=lambda name: int(_NUMBER.findall(name)[-1]))
    for number, name in enumerate(slides):
        yield _title(number, f"Slide {number + 1}")
        yield from _shapes(ET.fromstring(archive.read(name)))  # noqa: S314 - it runs in a sandbox
        yield from _notes(archive, name)


def _shapes(parent: ET.Element) -> Iterator[str]:
    for child in parent:
        if child.tag == f"{_DRAWING}p":
            if (text := _runs(child)).strip():
                yield f"{text}\n"
        elif child.tag == f"{_DRAWING}tbl":
            rows = child.iter(f"{_DRAWING}tr")
            yield from _rows([_cell(cell) for cell in row.iter(f"{_DRAWING}tc")] for row in rows)
        else:
            yield from _shapes(child)


def _runs(paragraph: ET.Element) -> str:
    return "".join(each.text or "" for each in paragraph.iter(f"{_DRAWING}t"))


def _cell(cell: ET.Element) -> str:
    return "\n".join(_runs(each) for each in cell.iter(f"{_DRAWING}p"))


def _notes(archive: zipfile.ZipFile, slide: str) -> Iterator[str]:
    folder, _, file = slide.rpartition("/")
    relations = f"{folder}/_rels/{file}.rels"
    if relations not in archive.namelist():
        return
    for each in ET.fromstring(archive.read(relations)):  # noqa: S314 - it runs in a sandbox
        target = each.get("Target") or ""
        place = f"ppt/notesSlides/{target.rpartition('/')[2]}"
        if not (each.get("Type") or "").endswith("/notesSlide") or place not in archive.namelist():
            continue
        for shape in ET.fromstring(archive.read(place)).iter(f"{_SLIDE}sp"):  # noqa: S314 - it runs in a sandbox
            # The others hold the slide's picture, number and date.
            if any(each.get("type") == "body" for each in shape.iter(f"{_SLIDE}ph")):
                yield from (f"Notes: {text}" for text in _shapes(shape))


def _open_document(archive: zipfile.ZipFile) -> Iterator[str]:
    root = ET.fromstring(archive.read("content.xml"))  # noqa: S314 - it runs in a sandbox
    body = root.find(f"{_OFFICE}body")
    if body is None:
        raise Refused("it has no content")
    yield from _blocks(body)


def _blocks(parent: ET.Element) -> Iterator[str]:
    for child in parent:
        if child.tag == f"{_TEXT}h":
            level = child.get(f"{_TEXT}outline-level", "1")
            yield f"{'#' * (int(level) if level.isdecimal() and len(level) == 1 else 1)} {_inline(child)}\n\n"
        elif child.tag == f"{_TEXT}p":
            if text := _inline(child):
                yield f"{text}\n\n"
        elif child.tag == f"{_TABLE}table":
            if name := child.get(f"{_TABLE}name"):
                yield f"## {name}\n"
            rows = child.iter(f"{_TABLE}table-row")
            yield from _rows(
                [_inline(cell) for cell in row if cell.tag == f"{_TABLE}table-cell"] for row in rows
            )
            yield "\n"
        else:
            yield from _blocks(child)


def _inline(element: ET.Element) -> str:
    parts = [element.text or ""]
    for child in element:
        if child.tag == f"{_TEXT}s":
            parts.append(" ")
        elif child.tag == f"{_TEXT}tab":
            parts.append("\t")
        elif child.tag == f"{_TEXT}line-break":
            parts.append("\n")
        elif child.tag != f"{_OFFICE}annotation":
            parts.append(_inline(child))
        parts.append(child.tail or "")
    return "".join(parts).strip() if element.tag == f"{_TABLE}table-cell" else "".join(parts)


def _epub(archive: zipfile.ZipFile) -> Iterator[str]:
    container = ET.fromstring(archive.read("META-INF/container.xml"))  # noqa: S314 - it runs in a sandbox
    if "META-INF/encryption.xml" in archive.namelist():
        encryption = archive.read("META-INF/encryption.xml")
        # Fonts are often scrambled; then the text is not.
        if b"xhtml" in encryption:
            raise Refused("it is protected (DRM)")
    place = next((each.get("full-path") for each in container.iter() if each.get("full-path")), None)
    if place is None:
        raise Refused("it names no content")
    package = ET.fromstring(archive.read(place))  # noqa: S314 - it runs in a sandbox
    items: dict[str | None, str] = {}
    order: list[str | None] = []
    for each in package.iter():
        if each.tag.endswith("}item") or each.tag == "item":
            items[each.get("id")] = each.get("href") or ""
        elif each.tag.endswith("}itemref") or each.tag == "itemref":
            order.append(each.get("idref"))
    base = PurePosixPath(place).parent
    has_text = False
    for name in order:
        href = items.get(name, "")
        if not href:
            continue
        text = _markdown(archive.read(str(base / unquote(href))))
        if text.strip():
            yield f"\n\n{text}" if has_text else text
            has_text = True


def _html(data: bytes) -> Iterator[str]:
    # The tree takes a KiB for each.
    if (tags := data.count(b"<")) > _MOST_TAGS:
        raise Refused(
            f"it has {tags:,} tags, more than {_MOST_TAGS:,}; split it, or keep it as it is (--raw-html)"
        )
    yield _markdown(data)


def _markdown(html: str | bytes) -> str:
    bs4: Any = import_module("bs4")
    markdownify: Any = import_module("markdownify")
    soup = bs4.BeautifulSoup(html, "html.parser")
    for each in soup(["script", "style", "template", "noscript", "svg"]):
        each.decompose()
    # The title stands in the head, and is no part of the page.
    for each in soup("head"):
        each.decompose()
    try:
        text = markdownify.MarkdownConverter(
            heading_style="ATX", strip=["img"], table_infer_header=True
        ).convert_soup(soup)
    except RecursionError:
        # It finds texts without a stack.
        text = soup.get_text("\n")
    return re.sub(r"\n{3,}", "\n\n", str(text)).strip() + "\n"


_CONVERTERS: dict[str, Callable[[bytes], Iterable[str]]] = {"pdf": _pdf, "zip": _zip, "html": _html}
# The first member that is there decides.
_IN_ARCHIVE: dict[str, Callable[[zipfile.ZipFile], Iterator[str]]] = {
    "word/document.xml": _docx,
    "xl/workbook.xml": _xlsx,
    "ppt/presentation.xml": _pptx,
    "META-INF/container.xml": _epub,
    "content.xml": _open_document,
}
