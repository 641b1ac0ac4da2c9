"""Parse Python that a model wrote, in steps that an event loop can afford. Nothing is compiled or run."""

from __future__ import annotations

import ast
import re
import warnings

from ..slices import Steps

# Parsed at once: 1,000 tokens are 4,000 characters of usual code, and take 3 ms at most.
_MAX_TOKENS = 1_000
# Each level of brackets makes parsing slower: 50 of them take twice as long.
_COSTLY_DEPTH = 50
_TOKEN = re.compile(r"\s*(#[^\n]*|\"\"\"|'''|\w+|[^\w\s]|\Z)")
# A line ends a string in single quotes.
_ENDS = {
    mark: re.compile(rf"\\.|{mark}" + ("|\n" if len(mark) == 1 else ""), re.DOTALL)
    for mark in ('"""', "'''", '"', "'")
}
# A token takes as long as so many line ends.
_SPACES_OF_A_TOKEN = 100
_TOKENS_A_STEP = 500


def parsed(code: str) -> list[ast.stmt] | None:
    """Return the statements of code, or None if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def is_parsed_fast(code: str) -> Steps[bool]:
    """Return whether ``parsed`` takes some 3 ms at most."""
    cost, depth, at, number = 0.0, 0, 0, 0
    before = ""
    while found := _TOKEN.match(code, at):
        cost += (found.start(1) - at) / _SPACES_OF_A_TOKEN
        word, at = found[1], found.end()
        if not word:
            break
        if word in _ENDS:
            start = at
            end = yield from end_of_string(code, at, word)
            at = len(code) if end < 0 else end
            # An f-string holds code.
            if before.lower() in ("f", "rf", "fr"):
                cost += (at - start) / 2
        depth += (word in "([{") - (word in ")]}")
        cost += 1 + max(0, depth) / _COSTLY_DEPTH
        if cost > _MAX_TOKENS:
            return False
        before = word
        number += 1
        if not number % _TOKENS_A_STEP:
            yield
    return cost <= _MAX_TOKENS


def end_of_string(code: str, at: int, mark: str) -> Steps[int]:
    """Return the offset behind the string that ``mark`` opened before ``at``, or -1 if it is not closed."""
    number = 0
    while ended := _ENDS[mark].search(code, at):
        at = ended.end()
        if not ended[0].startswith("\\"):
            return at
        number += 1
        if not number % _TOKENS_A_STEP:
            yield
    return -1
