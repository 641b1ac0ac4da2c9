"""Rewrite what notebooks and prompts allow into Python: fences, prompts, indents, ``%``, ``!``, ``?``.

Only code that does not compile is rewritten. Lines keep their numbers. Strings and brackets are not touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from . import magic_names

CALL = "__magic__"

_FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*[^`]*$")
_PROMPT = re.compile(r"(?:>>>|In \[\d+\]:)(?: |$)")
_MORE = re.compile(r"(?:>>>|\.\.\.|In \[\d+\]:|\s+\.\.\.:)(?: |$)")
_ASSIGNED = re.compile(r"([\w.,\[\] '\"*]+)=\s*([%!])(?!=)(.*)")
_HELP = re.compile(r"(\?{1,2})([\w.]+)$|([\w.]+)(\?{1,2})$")
# What opens or ends a string, a comment, a bracket, or continues a line.
_TOKEN = re.compile(r"'''|\"\"\"|['\"]|#|[\[({]|[\])}]|\\\n|\n")
_STRING_ENDS = {
    mark: re.compile(rf"(?:\\.|(?!{mark})[^\\])*{mark}", re.DOTALL) for mark in ("'''", '"""')
} | {mark: re.compile(rf"(?:\\.|[^\\\n{mark}])*{mark}?", re.DOTALL) for mark in ("'", '"')}


# Some 0.1 s for each time that they are read. No notebook has as many, and a cell's error must come in time.
_MOST_TOKENS = 100_000


class TooManyTokens(Exception):
    """The code is too long to be rewritten."""


class Rewritten(NamedTuple):
    """A block as Python, and what to execute before and after it."""

    code: str
    before: str = ""
    after: str = ""

    @property
    def has_magics(self) -> bool:
        """Whether it needs ``CALL`` in its namespace."""
        return CALL in f"{self.before}{self.code}"


def rewrite(source: str) -> Rewritten:
    """Return the code as Python, with as many lines.

    Raises:
        SyntaxError: a magic is unknown, and how to write it in Python.
        TooManyTokens: the code is too long.
    """
    source = source.lstrip("\ufeff\u200b").replace("\r\n", "\n").replace("\r", "\n")
    source = _dedent(_without_prompts(_dedent(_without_fence(source))))
    first = next((line for line in source.split("\n") if line.strip()), "")
    if first.startswith("%%"):
        return _cell_magic(source)
    return Rewritten(_line_magics(source))


def _without_fence(source: str) -> str:
    lines = source.split("\n")
    written = [number for number, line in enumerate(lines) if line.strip()]
    if not written or not _FENCE.match(lines[written[0]]):
        return source
    lines[written[0]] = ""
    if len(written) > 1 and lines[written[-1]].strip().strip("`~") == "":
        lines[written[-1]] = ""
    return "\n".join(lines)


def _without_prompts(source: str) -> str:
    lines = source.split("\n")
    if not any(_PROMPT.match(line) for line in lines if line.strip()):
        return source
    first = next(line for line in lines if line.strip())
    if not _PROMPT.match(first):
        return source
    # A line without a prompt is what the session printed.
    return "\n".join(line[match.end() :] if (match := _MORE.match(line)) else "" for line in lines)


def _dedent(source: str) -> str:
    lines = source.split("\n")
    starts = {number for number, _ in _statements(source)}
    first = next((lines[number] for number in sorted(starts) if _is_code(lines[number])), "")
    indent = first[: len(first) - len(first.lstrip())]
    if not indent:
        return source
    # If a string has a line at the margin, its lines are as they should be.
    is_uniform = all(line.startswith(indent) for line in lines if _is_code(line))
    return "\n".join(
        line[len(indent) :] if line.startswith(indent) and (is_uniform or number in starts) else line
        for number, line in enumerate(lines)
    )


def _is_code(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _statements(source: str) -> Iterator[tuple[int, int]]:
    """Yield the number and offset of each line that does not begin inside a string or bracket."""
    number = depth = position = tokens = 0
    yield 0, 0
    is_start = True
    while position < len(source):
        if is_start:
            # A magic is no Python: a quote in it opens no string.
            end = _end_of_magic(source, position)
            if end is not None:
                number += source.count("\n", position, end)
                position = end
        token = _TOKEN.search(source, position)
        if token is None:
            return
        tokens += 1
        if tokens > _MOST_TOKENS:
            raise TooManyTokens
        text, end, is_start = token.group(), _end_of_token(source, token), False
        number += source.count("\n", token.start(), end)
        position = end
        depth = max(0, depth + (text in "[({") - (text in "])}"))
        if text == "\n" and depth == 0:
            yield number, position
            is_start = True


def _end_of_token(source: str, token: re.Match[str]) -> int:
    text, end = token.group(), token.end()
    if text == "#":
        return _line_end(source, end, continues=False)
    if text in _STRING_ENDS:
        closed = _STRING_ENDS[text].match(source, end)
        return closed.end() if closed else len(source)
    return end


def _end_of_magic(source: str, start: int) -> int | None:
    end = _line_end(source, start)
    line = source[start:end].strip()
    if line.startswith(("%", "!", "?")) or _ASSIGNED.fullmatch(line) or line.endswith("?"):
        return end
    return None


def _line_end(source: str, start: int, *, continues: bool = True) -> int:
    # A backslash continues a magic, as it does a shell command.
    end = source.find("\n", start)
    while continues and end > 0 and source[end - 1] == "\\":
        end = source.find("\n", end + 1)
    return len(source) if end < 0 else end


def _line_magics(source: str) -> str:
    done: list[str] = []
    position = 0
    for number, start in list(_statements(source)):
        end = _line_end(source, start)
        line = source[start:end]
        code = line.strip()
        python = _as_python(code, number + 1) if code else None
        if python is not None:
            indent = line[: len(line) - len(line.lstrip())]
            done += [source[position:start], indent, python, "\n" * line.count("\n")]
            position = end
    return "".join([*done, source[position:]])


def _as_python(line: str, number: int) -> str | None:
    """Return the call for a line with a magic; None for other lines."""
    if line.startswith("!!"):
        return f"{CALL}.shell_lines({_joined(line[2:])!r})"
    if line.startswith("!"):
        return _shell(line[1:])
    if line.startswith("%"):
        return _magic(line, number)
    if assigned := _ASSIGNED.fullmatch(line):
        target, sign, rest = assigned[1].rstrip(), assigned[2], assigned[3]
        if sign == "!":
            return f"{target} = {CALL}.shell_lines({_joined(rest)!r})"
        return f"{target} = {_magic('%' + rest, number)}"
    if wanted := _HELP.fullmatch(line):
        name, marks = wanted[2] or wanted[3], wanted[1] or wanted[4]
        return f"{CALL}.help({name}, source={len(marks) > 1})"
    return None


def _joined(command: str) -> str:
    return command.replace("\\\n", "").strip()


def _shell(command: str) -> str:
    command = _joined(command)
    return f"{CALL}.shell({command!r})"


def _magic(line: str, number: int) -> str:
    name, _, rest = line[1:].strip().partition(" ")
    rest = _joined(rest)
    if name in magic_names.IGNORED or (name == "load_ext" and rest in magic_names.IGNORED):
        return "pass"
    if name == "time":
        return _timed(rest)
    if name in magic_names.SHELL:
        return f"{CALL}.shell({f'{name} {rest}'.strip()!r})"
    if name in magic_names.LINE:
        return f"{CALL}.{magic_names.LINE[name]}({rest!r})"
    raise unknown(f"%{name}", number, line)


def _timed(statement: str) -> str:
    try:
        compile(f"({statement}\n)", "", "eval", 0x2000, dont_inherit=True)
    except SyntaxError:
        return f"with {CALL}.timed(): {statement or 'pass'}"
    # An expression keeps its value.
    return f"({CALL}.start(), ({statement}), {CALL}.stop())[1]"


def _cell_magic(source: str) -> Rewritten:
    before, _, rest = source.partition("%%")
    line, _, body = rest.partition("\n")
    name, _, arguments = line.strip().partition(" ")
    number = before.count("\n") + 1
    if name == "time":
        code = f"{before}{arguments}\n{_line_magics(body)}"
        return Rewritten(code, f"{CALL}.start()", f"{CALL}.stop()")
    if name == "capture":
        target = next((word for word in arguments.split() if word.isidentifier()), "_")
        return Rewritten(
            f"{before}\n{_line_magics(body)}", f"{target} = {CALL}.capture()", f"{CALL}.release()"
        )
    if name not in magic_names.CELL:
        raise unknown(f"%%{name}", number, f"%%{line}")
    call = f"{CALL}.{magic_names.CELL[name]}({name!r}, {arguments.strip()!r}, {body!r})"
    return Rewritten(f"{before}{call}")


def unknown(name: str, number: int, line: str) -> SyntaxError:
    """Return the error for a magic that is not there."""
    hint = magic_names.INSTEAD.get(name.lstrip("%"), "write what it does in Python")
    error = SyntaxError(f"{name} is a command of IPython, which does not run here: {hint}")
    error.lineno, error.offset, error.text = number, 1, line
    return error


_CHARACTERS = {
    "\u201c": "a straight quote \"", "\u201d": "a straight quote \"", "\u2018": "a straight quote '",
    "\u2019": "a straight quote '", "\xa0": "a plain space", "\u3000": "a plain space",
    "\u2009": "a plain space", "\u202f": "a plain space", "\u200b": "nothing there",
    "\ufeff": "nothing there",
    "\u2013": "a minus -", "\u2014": "a minus -", "\u2212": "a minus -", "\u00d7": "a star *",
    "\u2026": "three points ...", "\uff08": "(", "\uff09": ")", "\uff0c": "a comma ,", "\u2264": "<=",
    "\u2265": ">=", "\u2260": "!=",
}  # fmt: skip


def hint_for(error: SyntaxError, source: str) -> str:
    """Return what to write instead, for an error of the compiler; empty if there is nothing to say."""
    message = error.msg
    if found := re.search(r"\(?U\+([0-9A-F]{4,6})\)?", message):
        instead = _CHARACTERS.get(chr(int(found[1], 16)))
        return f"write {instead} instead of it" if instead else ""
    if isinstance(error, TabError):
        return "write four spaces for each tab"
    if any(_FENCE.match(line) for line in source.split("\n")):
        return "a Markdown fence (```) is no Python: send only the code between the fences"
    return ""
