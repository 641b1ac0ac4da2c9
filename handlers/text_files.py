"""Decode text files: UTF-8, a byte order mark, or a guess.

A byte order mark is no part of the text. Line ends stay as they are.
"""

from __future__ import annotations

import codecs
import re
from contextlib import suppress
from pathlib import Path

# The UTF-32-LE mark begins with the UTF-16-LE mark, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_HEAD = 8192
# Guessing takes some 5 ms for a KiB.
_SAMPLE = 4096
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_CONTROL = re.compile(rb"[\x01-\x06\x0e-\x1a\x1c-\x1f]")
# With fewer such bytes than this, languages cannot be told apart.
_FEW = 24
# A language's letters beside ASCII, as cp1252 reads their bytes, and the encoding of such a text.
_ALPHABETS = (
    ("àâæçéèêëîïôœùûüÿ", "cp1252"),  # French
    ("äöüßé", "cp1252"),  # German
    ("áéíñóúüçàèïò", "cp1252"),  # Spanish, Catalan
    ("áâãàçéêíóôõúü", "cp1252"),  # Portuguese
    ("àèéìîòóù", "cp1252"),  # Italian
    ("åäöéüà", "cp1252"),  # Swedish, Finnish
    ("æøåéèòóôüö", "cp1252"),  # Danish, Norwegian
    ("éëïóöüèê", "cp1252"),  # Dutch
    ("áðéíóúýþæö", "cp1252"),  # Icelandic
    ("äöõüšž", "cp1252"),  # Estonian
    ("çöüðýþâîû", "cp1254"),  # Turkish: its own letters are where cp1252 has the Icelandic ones
)
# Without the last two, whose letters are those of Central Europe in cp1250, too.
_WESTERN = frozenset("".join(letters for letters, _ in _ALPHABETS[:-2]))
_PUNCTUATION = frozenset("\xa0\xad\xb4\u2018\u2019\u201c\u201d\u2013\u2014…€£§°©®·ºª«»¡¿")
# Of old computers and rare languages: a guess of one is nearly always wrong.
_RARE = re.compile(r"cp[4-8]\d\d|cp1258|mac_|hp_|iso8859_(1|3|9|10|14|15|16)$|latin_1|tis_620|cp1[01]\d\d")
_ENOUGH = 0.95


class NotText(ValueError):
    """The bytes are no text."""


def marked_encoding(data: bytes) -> tuple[str, int]:
    """Return the encoding that a byte order mark names, else UTF-8; and the length of the mark."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding, len(mark)
    return unmarked_wide(data) or "utf-8", 0


def unmarked_wide(data: bytes) -> str | None:
    """Return the encoding if the bytes look like UTF-16 of a Western text without a mark."""
    head = data[:_HEAD]
    if len(head) < 8 or len(data) % 2:
        return None
    half = len(head) // 2
    even, odd = head[::2].count(0), head[1::2].count(0)
    if odd > 0.6 * half and even < 0.05 * half:
        return "utf-16-le"
    return "utf-16-be" if even > 0.6 * half and odd < 0.05 * half else None


def is_binary(data: bytes) -> bool:
    """Return whether the first bytes are binary data, and not text."""
    head = data[:_HEAD]
    return b"\0" in head or 20 * len(_CONTROL.findall(head)) > len(head)


def guess_encoding(data: bytes) -> str:
    """Return the encoding of bytes that are no UTF-8.

    Raises:
        NotText: they are no text.
    """
    if is_binary(data):
        raise NotText("it is a binary file, and no text")
    from charset_normalizer import from_bytes

    found = _NOT_ASCII.search(data)
    start = max(0, found.start() - 256) if found else 0
    sample = _whole(data[start : start + _SAMPLE])
    spelled = "cp932" if _has_hiragana(sample) else _spelled(sample)
    if spelled is not None:
        return spelled
    matches = from_bytes(sample, cp_exclusion=["utf_8", "utf_16", "utf_32", "utf_7"])
    best = matches.best()
    if best is None:
        return "cp1252"
    western = next((each for each in matches if "cp1252" in each.could_be_from_charset), None)
    is_short = len(_NOT_ASCII.findall(sample)) < _FEW
    if _RARE.match(best.encoding) and _share(_letters(sample), _WESTERN) >= _ENOUGH:
        return "cp1252"
    if western is not None and (is_short or western.encoding == best.encoding):
        return "cp1252"
    # The family's most common member: it reads the same bytes, and more of the file.
    return {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932"}.get(best.encoding, best.encoding)


def _whole(sample: bytes) -> bytes:
    """Return a sample without the begin of a character that is cut at its end."""
    for encoding in ("euc_jp", "euc_kr", "big5", "cp932", "gb18030"):
        decoder = codecs.getincrementaldecoder(encoding)()
        with suppress(UnicodeDecodeError):
            decoder.decode(sample)
            return sample[: len(sample) - len(decoder.getstate()[0])]
    return sample


def _has_hiragana(sample: bytes) -> bool:
    """Return whether Shift JIS reads at least a fifth as Hiragana, which only Japanese has."""
    try:
        text = sample.decode("cp932")
    except UnicodeDecodeError:
        return False
    others = [each for each in text if not each.isascii()]
    return 5 * sum("\u3041" <= each <= "\u3096" for each in others) >= max(1, len(others))


def _spelled(sample: bytes) -> str | None:
    """Return the encoding whose bytes spell one language of Western Europe, or Turkish."""
    letters = _letters(sample)
    shares = [_share(letters, frozenset(alphabet)) for alphabet, _ in _ALPHABETS]
    most = max(shares)
    return _ALPHABETS[shares.index(most)][1] if most >= _ENOUGH else None


def _letters(sample: bytes) -> str:
    """Return what cp1252 reads beside ASCII and punctuation; "" if that is no Western text."""
    try:
        text = sample.decode("cp1252")
    except UnicodeDecodeError:
        return ""
    others = [each for each in text if not each.isascii() and each not in _PUNCTUATION]
    # Western words are mostly ASCII. Words of other alphabets have none.
    most = sum(each.isascii() and each.isalpha() for each in text)
    return "".join(others).lower() if len(others) < most else ""


def _share(letters: str, alphabet: frozenset[str]) -> float:
    return sum(each in alphabet for each in letters) / len(letters) if letters else 0.0


def decode_text(data: bytes) -> tuple[str, str | None]:
    """Return the text of a file, and its encoding if that was guessed.

    Raises:
        NotText: it is none.
    """
    encoding, mark = marked_encoding(data)
    try:
        return data[mark:].decode(encoding), None
    except UnicodeDecodeError as error:
        if mark:
            raise NotText(f"it is damaged {encoding.upper()} text (byte {error.start + mark})") from error
    guessed = guess_encoding(data)
    return data.decode(guessed, "replace"), guessed


def guess_warning(what: object, encoding: str) -> str:
    """Return the warning about a guessed encoding."""
    return (
        f"{what} is not UTF-8; it is read as {encoding.replace('_', '-')}. If that is wrong, save it as UTF-8"
    )


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        NotText: it has none.
    """
    try:
        return decode_text(path.read_bytes())[0]
    except NotText as error:
        raise NotText(f"{path}: {error}") from error
