"""The texts for a supervisor, as ``string.Template``. A user can replace them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from string import Template

from ...handlers.text_files import NotText, read_text
from ...sandbox_image.text import shorten
from ..broker.budget import Remaining
from ..errors import TaskError

_WITH_WORKER = """\
You answer a question about a document that is too long to read at once. You never see the document itself: \
you write Python that reads it, and a smaller language model, the worker, reads the pieces that your code \
hands to it. \
Your code is the research strategy.
"""

_ALONE = """\
You answer a question about a document that is too long to read at once. You see of the document only what \
the Python \
that you write prints of it. Your code is the research strategy.
"""

_BLOCKS = """
Write code in fenced blocks marked `repl`:

```repl
print(type(context), len(context))
```

The blocks of your message run in order, in one Python interpreter whose variables persist from turn to \
turn. You are \
then shown what they printed, and the value of an expression that a block ends with, cut to about \
$output_limit \
characters, or the traceback of the block that failed; the blocks after a failed one are not run. In every \
block you have:

- `context`: the document ($context_kind).
- `query`: the question.
"""

_WORKER = """\
- `worker(prompt) -> str`: asks the worker one thing. It sees only the prompt: put the text into it, and \
say what you \
want to know. Its window is about $worker_ctx_k thousand tokens, prompt and answer together: keep a prompt \
below \
about $worker_chars characters.
- `worker_batch(prompts) -> list[str]`: asks many things at once, and returns the answers in order. It is \
far faster \
than a loop over `worker`. If some calls fail it raises `WorkerBatchError`, whose `.results` holds the \
answers that \
came and the errors of the others; with `return_errors=True` it returns that list instead.
- `budget() -> dict`: what is left of the run's worker calls, tokens, dollars and seconds; None where there \
is no limit.
"""

_BUDGET_ALONE = """\
- `budget() -> dict`: what is left of the run's tokens, dollars and seconds; None where there is no limit.
"""

_REST = """\
- `history(start=0, stop=None) -> list`: the messages of this conversation, also those that were cut from it.
- `FINAL(answer)`: gives the answer and ends the research. Only a call that is executed counts.

Assigning to one of these names lasts until the end of the block. $importable can be imported; there is no \
network and no file but your own under /work.
"""

_STRATEGY = """
A strategy that works:
1. Look first: print the kind, the size and the beginning of `context`. Do not guess its structure.
2. Split it into chunks that fit the worker, at natural borders (headings, paragraphs, items). Where a \
search for \
words or a regular expression narrows it down, use that before you spend worker calls.
3. Ask about all chunks with one `worker_batch`. Ask for what you need in a form that is easy to aggregate, \
and let \
the worker say so when a chunk holds nothing.
4. Aggregate: print what came back, compare it, ask the worker again about what is unclear or contradictory.
5. Call `FINAL(answer)` with a short, direct answer once the evidence supports it. Print and read the \
evidence first.
"""

_STRATEGY_ALONE = """
A strategy that works:
1. Look first: print the kind, the size and the beginning of `context`. Do not guess its structure.
2. Search it for words of the question, their synonyms and names, with regular expressions, and print the \
passages \
around what you find, a few at a time: you are shown about $output_limit characters of a block.
3. Read what is printed, and search again with what you learnt. Where all of it counts, go through it piece \
by piece.
4. Call `FINAL(answer)` with a short, direct answer once the evidence supports it.
"""

_SYSTEM = _WITH_WORKER + _BLOCKS + _WORKER + _REST + _STRATEGY
_SYSTEM_ALONE = _ALONE + _BLOCKS + _BUDGET_ALONE + _REST + _STRATEGY_ALONE

_FIRST = """\
Question: $query

The document is in `context`: $context_facts

You have at most $max_iterations turns. Begin by looking at the context.\
"""

_NO_CODE = """\
Your message held no ```repl block, so nothing was executed. Write your code in a fenced block marked \
`repl`; \
when you know the answer, call FINAL(answer) in such a block.\
"""

_NO_CODE_AGAIN = """\
Again your message held no block that can be executed ($times messages in a row), so nothing happened. \
Do not describe what you would do. Send exactly this form, with your own code:

```repl
print(context[:500])
```
"""

_EMPTY = """\
Your message was empty, so nothing was executed. Write a short fenced block marked `repl`; when you know the \
answer, call FINAL(answer) in such a block.\
"""

_ONLY_THOUGHTS = """\
Your message held only thoughts and no text, so nothing was executed. Thoughts are not read. Write your code \
into the message itself, in a fenced block marked `repl`.\
"""

_TOOL_CALL = """\
You called a tool, but there are no tools here, so nothing was executed. Write the code as text into your \
message, in a fenced block marked `repl`.\
"""

_REFUSED = """\
You declined, so nothing was executed. The task is only to read the document with code and to report \
what it says. Go on with a fenced block marked `repl`. If you cannot answer, call FINAL with the reason in \
such a block.\
"""

_CUT_OFF = """\
Your message was cut off at the token limit ($limit). A block that was incomplete was not executed; complete \
blocks before it were. Send the rest again as a shorter message: short blocks, few words.\
"""

_CUT_THOUGHTS = """\
Your message was cut off at the token limit ($limit) before it had any text: you thought for too long. \
Nothing was executed. Think briefly now, and write one short block marked `repl` at once.\
"""

_SAME_AGAIN = """\
This is the same message as before ($times times in a row), and the same result. It will not change. Do \
something else: look at another part, use another method, or call FINAL(answer).\
"""

_NUDGE_EARLY = "$turns_left turns are left."
_NUDGE_LATE = "Only $turns_left turns are left. Aggregate what you have, and call FINAL(answer) soon."
_NUDGE_LAST = (
    "This is your last turn. Call FINAL(answer) in a ```repl block now, with the best answer that you have."
)

_LEFT_OUT = "[$characters characters left out to save room; history($number)[0] has them]"

_BUDGET = "Left of the budget: $left."

_BEST_ANSWER = """\
The research is over ($reason). Answer the question now, from what you have seen: $query
Reply with the answer alone, as plain text, without code.\
"""

_BEST_ANSWER_AGAIN = """\
That gave no answer: your message was code without FINAL(answer), or empty. \
Reply with the answer alone, as plain text, without code.\
"""

_STATE_LOST = """\
The interpreter was ended ($outcome), and all variables are gone. A fresh one was started; `context`, \
`query` and the \
functions are there again. Do not repeat what ended it.\
"""

_TOOLS = """\
For this question there are further functions:

$tools
"""


@dataclass(frozen=True, slots=True)
class Prompts:
    """The texts, and the values of each.

    Attributes:
        system: ``$output_limit $worker_ctx_k $worker_chars $context_kind $importable``.
        system_alone: the same for a run without a worker.
        first: ``$query $context_facts $max_iterations``.
        no_code, no_code_again: answer a message without a block, and a further one. ``$times``.
        empty, only_thoughts, tool_call, refused: answer such a message.
        cut_off, cut_thoughts: answer a message that was cut off, with or without text. ``$limit``.
        same_again: after the same message with the same result. ``$times``.
        nudge_early, nudge_late, nudge_last: after the outputs of a turn. ``$turns_left``.
        budget: with a limited budget. ``$left``.
        left_out: replaces an old message. ``$number $characters``.
        best_answer: after a limit. ``$reason $query``.
        best_answer_again: after a best answer that was code or empty.
        state_lost: after a fresh interpreter. ``$outcome``.
        tools: the end of ``system``. ``$tools``.
    """

    system: str = _SYSTEM
    system_alone: str = _SYSTEM_ALONE
    first: str = _FIRST
    no_code: str = _NO_CODE
    no_code_again: str = _NO_CODE_AGAIN
    empty: str = _EMPTY
    only_thoughts: str = _ONLY_THOUGHTS
    tool_call: str = _TOOL_CALL
    refused: str = _REFUSED
    cut_off: str = _CUT_OFF
    cut_thoughts: str = _CUT_THOUGHTS
    same_again: str = _SAME_AGAIN
    nudge_early: str = _NUDGE_EARLY
    nudge_late: str = _NUDGE_LATE
    nudge_last: str = _NUDGE_LAST
    budget: str = _BUDGET
    left_out: str = _LEFT_OUT
    best_answer: str = _BEST_ANSWER
    best_answer_again: str = _BEST_ANSWER_AGAIN
    state_lost: str = _STATE_LOST
    tools: str = _TOOLS

    @classmethod
    def from_directory(cls, path: str | Path) -> Prompts:
        """Read ``system.txt``, ``first.txt`` and so on from a folder.

        Raises:
            TaskError: the folder does not exist, or holds another ``.txt`` file.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise TaskError(f"the prompts' folder {folder} does not exist")
        known = {field.name for field in fields(cls)}
        try:
            texts = {
                file.stem: read_text(file).replace("\r\n", "\n") for file in sorted(folder.glob("*.txt"))
            }
        except (NotText, OSError) as error:
            raise TaskError(f"a prompt cannot be read: {error}") from error
        unknown = sorted(texts.keys() - known)
        if unknown:
            raise TaskError(f"{folder}/{unknown[0]}.txt is no prompt; there are {', '.join(sorted(known))}")
        return replace(cls(), **texts)


def fill(template: str, **values: object) -> str:
    """Put values into a prompt; an unknown ``$name`` stays."""
    return Template(template).safe_substitute({name: str(value) for name, value in values.items()})


def nudge(prompts: Prompts, turns_left: int, max_iterations: int) -> str:
    """Return the number of turns left as text."""
    if turns_left <= 1:
        text = prompts.nudge_last
    elif turns_left * 3 <= max_iterations:  # in the last third, the supervisor should aggregate
        text = prompts.nudge_late
    else:
        text = prompts.nudge_early
    return fill(text, turns_left=turns_left)


def budget_left(prompts: Prompts, left: Remaining) -> list[str]:
    """Return the rest of a limited budget as text."""
    parts = [
        f"{amount:,.4f} US dollars" if unit == "dollars" else f"{amount:,.0f} {unit.replace('_', ' ')}"
        for unit, amount in asdict(left).items()
        if amount is not None
    ]
    return [fill(prompts.budget, left=", ".join(parts))] if parts else []


_KEY_CHARS = 60


def context_facts(context: object) -> str:
    """Return the kind and size of the document, never its text."""
    match context:
        case str():
            lines = context.count("\n") + 1
            return f"a str of {len(context):,} characters in {lines:,} lines."
        case list():
            # The type checker knows nothing of the items: a context may hold anything.
            kinds = sorted({type(item).__name__ for item in context[:1000]})  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # as above
            return f"a list of {len(context):,} items ({', '.join(kinds) or 'empty'})."  # pyright: ignore[reportUnknownArgumentType]  # as above
        case dict():
            keys = [shorten(repr(key), _KEY_CHARS) for key in list(context)[:20]]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # as above
            more = ", …" if len(context) > len(keys) else ""  # pyright: ignore[reportUnknownArgumentType]  # as above
            return f"a dict of {len(context):,} keys: {', '.join(keys)}{more}."  # pyright: ignore[reportUnknownArgumentType]  # as above
        case _:
            return f"a value of type {type(context).__name__}."
