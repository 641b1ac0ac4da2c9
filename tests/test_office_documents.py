"""Documents as real programs write them: Chromium, LibreOffice, pandas, PowerPoint's format.

The PDF files of data/documents were printed by Chromium 156 and exported by LibreOffice 7.4.
"""

from __future__ import annotations

import shutil
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from test_documents import archive, docx

from supdist.engine import TaskError
from supdist.engine.documents import read_context
from supdist.tasks.jsonl import Jsonl
from supdist.tools.evals.contexts import Contexts

pytestmark = pytest.mark.anyio

SAMPLES = Path(__file__).parent / "data/documents"


async def text_of(path: Path, **options: Any) -> Any:
    return (await read_context([path], **options)).value


@pytest.mark.parametrize("name", ["chromium.pdf", "libreoffice.pdf", "owner-password.pdf"])
async def test_pdfs_of_programs_are_read_also_with_an_owners_password(name: str) -> None:
    """That one forbids copies, which PDF readers leave to their users."""
    assert (await text_of(SAMPLES / name)).strip() == "The code is 4711."


async def test_a_users_password_is_named() -> None:
    with pytest.raises(TaskError, match="it needs a password; save a copy without one"):
        await text_of(SAMPLES / "user-password.pdf")


async def test_pandas_files_are_read(tmp_path: Path) -> None:
    pd: Any = import_module("pandas")  # its types are partly unknown
    frame = pd.DataFrame({"city": ["Malmö", "Zürich"], "people": [357_377, 443_037]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "b.csv", index=False, sep=";", encoding="cp1252")
    frame.to_csv(tmp_path / "c.tsv", index=False, sep="\t")
    frame.to_json(tmp_path / "d.jsonl", orient="records", lines=True, force_ascii=False)
    with pd.ExcelWriter(tmp_path / "e.xlsx") as writer:
        frame.to_excel(writer, sheet_name="Cities", index=False)
        frame.iloc[:1].to_excel(writer, sheet_name="First", index=False)
    table = "city,people\nMalmö,357377\nZürich,443037\n"
    assert await text_of(tmp_path / "a.csv") == table
    assert await text_of(tmp_path / "b.csv") == table.replace(",", ";")
    assert await text_of(tmp_path / "c.tsv") == table.replace(",", "\t")
    assert await text_of(tmp_path / "d.jsonl") == (
        '{"city":"Malmö","people":357377}\n{"city":"Zürich","people":443037}\n'
    )
    assert (await text_of(tmp_path / "e.xlsx")).split("\n\n") == [
        f"## Cities\n{table[:-1]}", "## First\ncity,people\nMalmö,357377\n",
    ]  # fmt: skip


A = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
P = 'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'


def paragraph(text: str) -> str:
    return f"<a:p><a:r><a:t>{text}</a:t></a:r></a:p>"


def shape(kind: str, text: str) -> str:
    return f'<p:sp><p:ph type="{kind}"/>{paragraph(text)}</p:sp>'


async def test_tables_of_slides_are_rows_and_notes_are_read(tmp_path: Path) -> None:
    cells = [f"<a:tc>{paragraph(text)}</a:tc>" for text in ("Lot", "Million", "North", "77.5")]
    rows = f"<a:tr>{''.join(cells[:2])}</a:tr><a:tr>{''.join(cells[2:])}</a:tr>"
    slide = f"<p:sld {A} {P}>{paragraph('Costs')}<a:tbl>{rows}</a:tbl></p:sld>"
    notes = f"<p:notes {A} {P}>{shape('sldNum', '1')}{shape('body', 'Opens in 2031')}</p:notes>"
    relation = '<Relationship Type="http://x/notesSlide" Target="../notesSlides/notesSlide1.xml"/>'
    with zipfile.ZipFile(tmp_path / "deck.pptx", "w") as file:
        file.writestr("ppt/presentation.xml", "")
        file.writestr("ppt/slides/slide1.xml", slide)
        file.writestr("ppt/slides/_rels/slide1.xml.rels", f"<Relationships>{relation}</Relationships>")
        file.writestr("ppt/notesSlides/notesSlide1.xml", notes)
    assert await text_of(tmp_path / "deck.pptx") == (
        "## Slide 1\nCosts\nLot,Million\nNorth,77.5\nNotes: Opens in 2031\n"
    )


LAUGHS = (
    '<!DOCTYPE l [<!ENTITY l0 "lol">'
    + "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    + "]>"
)


async def test_billion_laughs_are_refused(tmp_path: Path) -> None:
    office = "urn:oasis:names:tc:opendocument:xmlns:office:1.0"
    xml = f'{LAUGHS}<o:d xmlns:o="{office}"><o:body>&l9;</o:body></o:d>'
    (tmp_path / "a.odt").write_bytes(archive(content_xml=xml))
    with pytest.raises(TaskError, match=r"a.odt: it is damaged, or no such file .*amplification"):
        await text_of(tmp_path / "a.odt")


async def test_html_with_too_many_tags_is_refused_at_once_and_kept_raw(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<html>" + "<b>x</b>" * 450_001)
    with pytest.raises(TaskError, match=r"it has 900,003 tags, more than 900,000; .*--raw-html"):
        await text_of(page)
    assert await text_of(page, raw_html=True) == page.read_text()


async def test_documents_of_a_data_set_are_read_as_those_of_commands(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "libreoffice.pdf", tmp_path / "a.pdf")
    (tmp_path / "b.docx").write_bytes(docx())
    (tmp_path / "c.html").write_text("<p>The <b>deck</b></p>")
    (tmp_path / "d.txt").write_bytes("Die Brücke heißt Übergang, sagt Jürgen Müßig aus Köln".encode("cp1252"))
    lines = [f'{{"context_file": "{name}", "query": "?", "answer": "x"}}\n' for name in
             ("a.pdf", "b.docx", "c.html", "d.txt", "a.pdf")]  # fmt: skip
    (tmp_path / "q.jsonl").write_text("".join(lines))
    task, notes = Jsonl(path=tmp_path / "q.jsonl"), list[str]()
    contexts = Contexts(notes.append)
    found = [await contexts.read(task, each) for each in task.examples()]
    assert found == [
        *[await text_of(tmp_path / name) for name in ("a.pdf", "b.docx")], "The **deck**\n",
        "Die Brücke heißt Übergang, sagt Jürgen Müßig aus Köln", found[0],
    ]  # fmt: skip
    assert notes == ["d.txt is not UTF-8; it is read as cp1252. If that is wrong, save it as UTF-8"]
    raw = Jsonl(path=tmp_path / "q.jsonl", raw_html=True)
    assert await contexts.read(raw, raw.examples()[2]) == "<p>The <b>deck</b></p>"
