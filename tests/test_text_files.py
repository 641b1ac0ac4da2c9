"""Files of text and of JSON Lines that people and programs wrote in their own ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from supdist.engine import Prompts, TaskError
from supdist.handlers import ScriptedHandler
from supdist.handlers.json_items import read_items
from supdist.handlers.text_files import NotText, read_text
from supdist.tools.testing.replies import Text, read_replies

ENCODED = {
    "utf-8": "caf\xe9\r\nx".encode(),
    "utf-8 with a mark": b"\xef\xbb\xbf" + "caf\xe9\r\nx".encode(),
    "utf-16 with a mark": "caf\xe9\r\nx".encode("utf-16"),
    "latin-1": "caf\xe9\r\nx".encode("latin-1"),
}


@pytest.mark.parametrize("data", ENCODED.values(), ids=ENCODED)
def test_text_and_prompts_are_read_in_any_encoding(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "first.txt").write_bytes(data)
    assert read_text(tmp_path / "first.txt") == "caf\xe9\r\nx"
    # A prompt has the line ends that the others have.
    assert Prompts.from_directory(tmp_path).first == "caf\xe9\nx"


def test_what_is_no_text_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "first.txt").write_bytes(bytes(range(256)))
    with pytest.raises(NotText, match=r"first\.txt: it is a binary file"):
        read_text(tmp_path / "first.txt")
    with pytest.raises(TaskError, match=r"a prompt cannot be read: .*first\.txt"):
        Prompts.from_directory(tmp_path)


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "marked"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"], ids=["lf", "crlf", "blank"])
def test_only_a_line_feed_ends_a_line_of_json(mark: str, end: str, tmp_path: Path) -> None:
    replies = ["a\u2028b\x85c", "second"]
    path = tmp_path / "replies.jsonl"
    text = mark + "".join(json.dumps(each, ensure_ascii=False) + end for each in replies)
    path.write_bytes(text.encode())
    assert read_items(path) == replies
    assert list(read_replies(path)) == [Text(each) for each in replies]
    ScriptedHandler.from_file(path)


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_text('"one"\n\n{"text": \n')
    for read in (ScriptedHandler.from_file, read_replies):
        with pytest.raises(ValueError, match=r"replies\.jsonl, line 3: "):
            read(path)
