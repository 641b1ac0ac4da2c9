"""Files of text and of JSON Lines that people and programs wrote in their own ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from supdist.engine import Prompts, TaskError
from supdist.handlers import ScriptedHandler
from supdist.handlers.json_items import read_items
from supdist.handlers.text_files import NotText, decode_text, read_text
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


# A text of each language, and the encodings in which files of it are found.
LANGUAGES = {
    "French": ("Le café coûte 7 euros à Zürich. ", "latin-1 cp1252"),
    "French with quotes": ("L\u2019été, près de l\u2019église \u2013 à 7 €, très bien. ", "cp1252"),
    "German": ("Die Straße führt über die Brücke nach München, wo Äpfel größer sind. ", "latin-1 cp1252"),
    "Spanish": ("El niño comió mañana. ¿Dónde está el camión? ¡Qué corazón! ", "latin-1 cp1252"),
    "Swedish": ("Räksmörgås är gott när vi åker båt på sjön. Året är långt. ", "latin-1 cp1252"),
    "Portuguese": ("Não há razão para a educação. As informações são públicas. ", "latin-1 cp1252"),
    "Italian": ("Perché la città è così bella? Più tardi andrò, ma già oggi. ", "latin-1 cp1252"),
    "Finnish": ("Hyvää päivää, mitä kuuluu? Tämä on äärimmäisen tärkeää työtä. ", "latin-1 cp1252"),
    "Danish": ("Blåbærgrød på øen er sød, og børnene løber over åen. ", "latin-1 cp1252"),
    "Polish": ("Wczoraj poszedłem do sklepu i kupiłem świeży chleb oraz żółty ser. Dziękuję. ", "cp1250"),
    "Czech": ("Příliš žluťoučký kůň úpěl ďábelské ódy. Dnes ráno jsem šel do obchodu. ", "cp1250"),
    "Russian": ("Вчера я пошёл в магазин и купил свежий хлеб и молоко. ", "cp1251 koi8-r cp866"),
    "Greek": ("Χθες πήγα στο κατάστημα και αγόρασα φρέσκο ψωμί, γάλα και λίγα μήλα. ", "cp1253 iso8859-7"),
    "Turkish": ("Dün mağazaya gittim, süt ile birkaç elma ald\u0131m. Çok güneşli bir gün. ", "cp1254"),
    "Japanese": ("昨日私は店に行って、新しいパンと牛乳とりんごを買いました。また明日。", "shift_jis euc-jp"),
    "Simplified Chinese": ("昨天我去商店买了新鲜的面包、牛奶和一些苹果。我们的公司在北京。", "gb18030"),
    "Traditional Chinese": ("昨天我去商店買了新鮮的麵包、牛奶和一些蘋果。我們的公司在臺北。", "big5"),
    "Korean": ("어제 나는 가게에 가서 신선한 빵과 우유, 사과를 샀습니다. 감사합니다. ", "euc-kr"),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_encoding_of_a_text_is_found_by_its_language(language: str) -> None:
    sentence, encodings = LANGUAGES[language]
    for encoding in encodings.split():
        for text in (10 * sentence, 50 * sentence, "x" + 200 * sentence):
            read, guessed = decode_text(text.encode(encoding))
            assert read == text, (encoding, guessed, read[:80])
