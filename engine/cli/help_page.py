"""Write the parts of a help page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# The group of parameters that name none.
OPTIONS = "Options"

# On a narrower page, a text stands below its name.
_LEAST_FOR_COLUMNS = 60
_NAME_COLUMNS = 28

# Typer's words for kinds of values, as people write them.
_KINDS = {
    "<int range>": "N", "<int>": "N", "<float range>": "NUMBER", "<float>": "NUMBER", "<str>": "TEXT",
    "<path>": "PATH", "<file>": "FILE", "<directory>": "DIR", "<list[str]>": "TEXT", "<list[path]>": "PATH",
}  # fmt: skip
_RANGE = re.compile(r"\[(?:(?P<least>-?[\d.]+)<=)?x(?:(?P<sign><=|>=)(?P<bound>-?[\d.]+))?\]")
_WORD = re.compile(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""")


def write_parameters(formatter: Any, ctx: Any, params: Sequence[Any]) -> None:
    """Write the arguments, then the options by the group that each names."""
    groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
    for each in params:
        record = each.get_help_record(ctx)
        if record is None:
            continue
        if each.param_type_name == "argument":
            groups["Arguments"].append((each.metavar or each.name.upper(), each.help or ""))
        else:
            panel = getattr(each, "rich_help_panel", None) or OPTIONS
            groups.setdefault(panel, []).append((_label(record[0]), _in_words(record[1])))
    # What belongs to no group comes last, where --help itself is.
    last = groups.pop(OPTIONS, [])
    _write(formatter, groups | {OPTIONS: last})


def write_commands(formatter: Any, commands: Sequence[tuple[str, Any]]) -> None:
    """Write the names of commands, each with its first sentence, in groups."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, command in commands:
        if not command.hidden:
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            groups.setdefault(panel, []).append((name, _first_sentence(command)))
    _write(formatter, groups)


def write_examples(formatter: Any, examples: Sequence[str]) -> None:
    """Write command lines that can be copied."""
    if examples:
        formatter.write_paragraph()
        formatter.write_heading("Examples" if len(examples) > 1 else "Example")
        for each in examples:
            formatter.write("".join(f"{line}\n" for line in _folded(each, formatter.width)))


def _write(formatter: Any, groups: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    # With 0, each text begins on a line of its own.
    widest = _NAME_COLUMNS if formatter.width >= _LEAST_FOR_COLUMNS else 0
    for title, rows in groups.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows, col_max=widest)


def _label(name: str) -> str:
    for kind, word in _KINDS.items():
        if name.endswith(kind):
            return f"{name.removesuffix(kind)}{word}"
    return name


def _in_words(text: str) -> str:
    return _RANGE.sub(_bounds, text)


def _bounds(found: re.Match[str]) -> str:
    least, sign, bound = found["least"], found["sign"], found["bound"]
    if least and bound:
        return f"[{least} to {bound}]"
    return f"[at {'most' if sign == '<=' else 'least'} {bound}]" if bound else ""


def _first_sentence(command: Any) -> str:
    paragraph = " ".join((command.short_help or command.help or "").strip().partition("\n\n")[0].split())
    # A name such as config.json has no space behind its dot.
    return re.split(r"(?<=[.:]) (?=[A-Z])", paragraph, maxsplit=1)[0].rstrip(".:")


def _folded(line: str, width: int) -> list[str]:
    lines, current = list[str](), "  "
    for word in _WORD.findall(line):
        if current.strip() and len(current) + len(word) + 3 > width:
            lines.append(f"{current} \\")
            current = "    "
        current += f"{'' if current.isspace() else ' '}{word}"
    return [*lines, current]
