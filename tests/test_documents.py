"""Contexts from files of any kind: text, documents, folders, patterns, pipes."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from process_support import started

from supdist.engine import TaskError, read_documents
from supdist.engine.documents import Context, read_context
from supdist.engine.documents.converter import Converter
from supdist.engine.documents.kinds import Kind
from supdist.engine.taskfile import TaskFile
from supdist.engine.trust import Bound, Environment
from supdist.engine.trust.settings import Settings

WORDS = "Zażółć the hull."


def pdf(text: str = "The code is 4711.", pages: int = 1) -> bytes:
    """Return a small PDF."""
    content = f"BT /F1 12 Tf 9 90 Td ({text}) Tj ET".encode()
    kids = " ".join(["3 0 R"] * pages).encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[%b]/Count %d>>" % (kids, pages),
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%b\nendstream" % (len(content), content),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    out, places = b"%PDF-1.4\n", list[int]()
    for number, each in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return (
        out
        + b"xref\n0 6\n0000000000 65535 f \n%btrailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF"
        % (
            table,
            len(out),
        )
    )


def archive(**members: str | bytes) -> bytes:
    """Return a zip archive; ``__`` in a name stands for a slash, ``_`` for a dot."""
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/").replace("_", "."), data)
    return found.getvalue()


def workbook() -> bytes:
    """Return a workbook of two sheets."""
    book, found = openpyxl.Workbook(), io.BytesIO()
    sheet = book.active
    assert sheet is not None
    sheet.title = "Cargo"
    sheet.append(["name", "tons"])
    sheet.append(["coal, black", 7])
    book.create_sheet("Crew").append(["ada"])
    book.save(found)
    return found.getvalue()


def docx() -> bytes:
    """Return a Word file of one paragraph."""
    found = io.BytesIO()
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    types = "http://schemas.openxmlformats.org/package/2006/content-types"
    relations = "http://schemas.openxmlformats.org/package/2006/relationships"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    with zipfile.ZipFile(found, "w") as file:
        file.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{types}"><Override PartName="/word/document.xml" ContentType="{kind}"/></Types>',
        )
        file.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{relations}"><Relationship Id="r" Type="{office}" '
            'Target="word/document.xml"/></Relationships>',
        )
        file.writestr(
            "word/document.xml",
            f'<w:document xmlns:w="{space}"><w:body><w:p><w:r><w:t>{WORDS}</w:t></w:r></w:p></w:body>'
            "</w:document>",
        )
    return found.getvalue()


OPEN_DOCUMENT = (
    '<o:document-content xmlns:o="urn:oasis:names:tc:opendocument:xmlns:office:1.0" '
    'xmlns:t="urn:oasis:names:tc:opendocument:xmlns:text:1.0"><o:body><o:text>'
    f'<t:h t:outline-level="2">Head</t:h><t:p>{WORDS}</t:p></o:text></o:body></o:document-content>'
)
EPUB = {
    "META-INF__container_xml": '<container><rootfile full-path="b/c.opf"/></container>',
    "b__c_opf": '<package><manifest><item id="x" href="a%20b.xhtml"/></manifest><spine><itemref idref="x"/>'
    "</spine></package>",
    "b__a b_xhtml": f"<html><head><title>T</title></head><body><h1>One</h1><p>{WORDS}</p></body></html>",
}
SLIDE = (
    '<p xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"><a:p><a:r><a:t>Sail </a:t></a:r>'
    "<a:r><a:t>away</a:t></a:r></a:p></p>"
)
HTML = (
    f"<html><head><title>T</title></head><body><script>x()</script><h1>Ship</h1><p>{WORDS}</p></body></html>"
)


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.PDF", pdf(pages=2), "The code is 4711.\fThe code is 4711."),
        ("a.txt", pdf(), "The code is 4711."),
        ("a.docx", docx(), f"{WORDS}\n"),
        ("a.xlsx", workbook(), '## Cargo\nname,tons\n"coal, black",7\n\n## Crew\nada\n'),
        ("a.odt", archive(content_xml=OPEN_DOCUMENT), f"## Head\n\n{WORDS}\n\n"),
        ("a.epub", archive(**EPUB), f"# One\n\n{WORDS}\n"),
        (
            "a.pptx",
            archive(ppt__presentation_xml="", ppt__slides__slide1_xml=SLIDE),
            "## Slide 1\nSail away\n",
        ),
        ("a.Htm", HTML.encode(), f"# Ship\n\n{WORDS}\n"),
        ("page", HTML.encode(), f"# Ship\n\n{WORDS}\n"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 9 else "",
)
async def test_a_document_gives_its_text(tmp_path: Path, name: str, data: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert await read_context([tmp_path / name]) == Context(text, [])


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.TXT", "\ufeffone\r\ntwo\r".encode(), "one\r\ntwo\r"),
        ("a.csv", b"a,b\r\n1,2\r\n", "a,b\r\n1,2\r\n"),
        ("a.jsonl", b'{"a": 1}\n{"a": 2}\n', '{"a": 1}\n{"a": 2}\n'),
        ("a.tex", WORDS.encode("utf-16"), WORDS),
        ("LICENSE", WORDS.encode("utf-16-be"), WORDS),
        ("a.JSON", b'\xef\xbb\xbf["x"]', ["x"]),
        ("empty.log", b"", ""),
    ],
)
async def test_a_text_has_any_suffix_and_keeps_its_line_ends(
    tmp_path: Path, name: str, data: bytes, text: object
) -> None:
    (tmp_path / name).write_bytes(data)
    assert await read_context([tmp_path / name]) == Context(text, [])  # type: ignore[arg-type]  # a list, too


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Le café de l'été \u2013 5 €\r\n"),
        ("cp1251", "Привет, мир. Здесь текст: корабли, море, ветер. " * 3),
        ("cp932", "これは日本語のテキストです。船と海の話。" * 3),
        ("gb18030", "这是一个关于船和大海的中文文本。" * 3),
    ],
)
async def test_an_older_encoding_is_guessed_with_a_warning(tmp_path: Path, encoding: str, text: str) -> None:
    (tmp_path / "old.txt").write_bytes(text.encode(encoding))
    found = await read_context(["old.txt"], folder=tmp_path)
    assert found.value == text
    assert found.warnings == [
        f"old.txt is not UTF-8; it is read as {encoding}. If that is wrong, save it as UTF-8"
    ]


OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
LAUGHS = (
    '<!DOCTYPE l [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    + "]><l>&j;</l>"
)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.pdf", b"", "it is empty"),
        ("a.pdf", pdf()[:300], "damaged PDF"),
        ("a.pdf", pdf(""), "it has no text (pages: 1)"),
        ("a.docx", docx()[:200], "it is damaged"),
        ("a.docx", archive(a_txt="x"), "unpack it"),
        ("a.odt", archive(content_xml=LAUGHS), "amplification"),
        ("a.docx", archive(word__document_xml=bytes(600 << 20)), "a zip bomb is not unpacked"),
        ("a.xlsx", OLD_OFFICE + "EncryptedPackage".encode("utf-16-le"), "it needs a password"),
        ("a.doc", OLD_OFFICE, "save it as .docx"),
        ("a.rtf", b"{\\rtf1 x}", "save it as .docx"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "text in images is not recognised"),
        ("a.gz", b"\x1f\x8b\x08", "it is compressed"),
        ("a.bin", bytes(range(256)), "it is a binary file. What can be read: text"),
        ("a.json", b"[", "not valid JSON"),
        ("a.txt", b"\xff\xfea", "damaged UTF-16-LE"),
    ],
)
async def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TaskError) as caught:
        await read_context([name], folder=tmp_path)
    assert words in str(caught.value)
    assert name in str(caught.value)


async def test_text_under_a_document_s_name_is_read_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("just text")
    found = await read_context(["a.pdf"], folder=tmp_path)
    assert found == Context(
        "just text", ["a.pdf holds plain text, although its name is that of a document; it is read as text"]
    )


async def test_a_conversion_ends_at_its_limits() -> None:
    with pytest.raises(TaskError, match=r"more than 0.5 s"):
        await Converter(seconds=0.5).convert(Kind.PDF, pdf("x", pages=500_000))
    bomb = archive(word__document_xml=b"<a>" + b" " * (300 << 20))
    with pytest.raises(TaskError, match="more than 64 MiB of memory"):
        await Converter(memory=64 << 20).convert(Kind.ZIP, bomb)


def test_without_the_libraries_the_error_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf())
    code = (
        "import sys; sys.modules['pypdfium2'] = None\n"
        "from supdist.engine import read_documents\n"
        "try: read_documents('a.pdf')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.startswith("TaskError cannot read a.pdf: documents need more libraries"), done.stderr
    assert "pip install 'supdist-engine[documents]'" in done.stdout


def folder_of(tmp_path: Path) -> Path:
    """Return a folder with files of many kinds."""
    folder = tmp_path / "papers"
    (folder / "deep").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text("secret")
    (folder / "b.txt").write_text("two")
    (folder / "deep/a.md").write_text("one")
    (folder / "p.pdf").write_bytes(pdf())
    (folder / "x.bin").write_bytes(bytes(99))
    (folder / ".hidden").write_text("secret")
    (tmp_path / "outside.txt").write_text("outside")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    return folder


async def test_a_folder_is_a_dict_of_texts(tmp_path: Path) -> None:
    folder_of(tmp_path)
    found = await read_context(["papers"], folder=tmp_path)
    assert found.value == {"b.txt": "two", "deep/a.md": "one", "p.pdf": "The code is 4711."}
    assert list(found.value) == sorted(found.value)
    skipped, binary = found.warnings
    assert (
        skipped
        == "papers: skipped (hidden, a link, a device, a cache or unreadable): .git, .hidden, link.txt"
    )
    assert binary.startswith("skipped: cannot read x.bin: it is a binary file")


async def test_patterns_and_several_files_are_a_dict_of_texts(tmp_path: Path) -> None:
    folder_of(tmp_path)
    found = await read_context(["papers/*.txt"], folder=tmp_path)
    assert found.value == {"papers/b.txt": "two", "papers/link.txt": "outside"}
    found = await read_context(["outside.txt", "papers/deep"], folder=tmp_path)
    assert found.value == {"outside.txt": "outside", "papers/deep/a.md": "one"}
    assert (await read_context(["outside.txt"], folder=tmp_path, many=True)).value == {
        "outside.txt": "outside"
    }
    with pytest.raises(TaskError, match="no file matches"):
        await read_context(["papers/*.none"], folder=tmp_path)
    # A file that was named must be readable.
    with pytest.raises(TaskError, match="binary"):
        await read_context(["outside.txt", "papers/x.bin"], folder=tmp_path)


async def test_a_pattern_of_a_task_file_reads_no_more_than_a_path(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    bound = Bound(folder / "task.json", Environment({}), settings=Settings())
    task = TaskFile(query="q", context_files=["*.txt"])
    with pytest.raises(TaskError, match="outside"):
        await task.read_context(folder, bound)
    (folder / "link.txt").unlink()
    assert (await task.read_context(folder, bound)).value == {"b.txt": "two"}
    for path in ("../*.txt", ".git", ".git/*", "."):
        with pytest.raises(TaskError, match=r"outside|hidden|whole"):
            await TaskFile(query="q", context_file=path).read_context(folder, bound)


async def test_stdin_and_pipes_are_read_to_their_end(tmp_path: Path) -> None:
    assert (await read_context(["-"], stdin=lambda: b"\xef\xbb\xbfx\r\n")).value == "x\r\n"
    assert (await read_context(["-"], stdin=pdf)).value == "The code is 4711."
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["sh", "-c", f"seq 100000 > {tmp_path}/pipe"]) as writer:
        found = (await read_context([tmp_path / "pipe"])).value
    assert writer.returncode == 0
    assert isinstance(found, str)
    assert found.splitlines() == [str(n) for n in range(1, 100_001)]
    with pytest.raises(TaskError, match="it is a device"):
        await read_context(["/dev/zero"])
    assert (await read_context(["/dev/null"])).value == ""


def test_programs_read_documents_with_and_without_an_event_loop(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("café\n".encode("latin-1"))
    (tmp_path / "b.html").write_text(HTML)
    with pytest.warns(UserWarning, match="read as cp1252"):
        assert read_documents(tmp_path / "a.txt") == "café\n"
    assert read_documents(tmp_path / "b.html", raw_html=True) == HTML
    found: Any = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = read_documents(tmp_path)
    assert found == {"a.txt": "café\n", "b.html": f"# Ship\n\n{WORDS}\n"}


def test_a_path_that_cannot_be_looked_at_is_a_task_error() -> None:
    with pytest.raises(TaskError, match="name too long"):
        read_documents("x" * 300)


async def test_the_programs_own_stdin_is_read_beside_the_event_loop(tmp_path: Path) -> None:
    """Ctrl-C ends it, and nothing is cut."""
    code = "from supdist.engine import read_documents; print(len(read_documents('-')))"
    async with started(sys.executable, "-c", code, cwd=tmp_path) as process:
        out, err = await process.communicate(b"x" * (3 << 20))
        assert (out, process.returncode) == (b"3145728\n", 0), err
    async with started(sys.executable, "-c", f"print('go', flush=True); {code}", cwd=tmp_path) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"go\n"
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 20) == -signal.SIGINT


async def test_a_file_that_is_named_in_two_ways_is_read_once(tmp_path: Path) -> None:
    folder_of(tmp_path)
    found = await read_context(["outside.txt", "./papers/../outside.txt"], folder=tmp_path)
    assert found.value == {"outside.txt": "outside"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
async def test_a_closed_file_of_a_folder_is_skipped_with_the_cause(tmp_path: Path) -> None:
    folder_of(tmp_path)
    (tmp_path / "papers/b.txt").chmod(0)
    found = await read_context(["papers"], folder=tmp_path)
    assert "skipped: cannot read b.txt: Permission denied" in found.warnings
