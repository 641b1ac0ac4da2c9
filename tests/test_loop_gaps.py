"""Law 7: the event loop is never held up for 20 ms by what a guest or a model sends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from supdist.engine import SandboxConfig, SandboxRuntime, arun, open_sandbox
from supdist.engine.sandbox import WorkerCall
from supdist.engine.sandbox.context import ContextMemory
from supdist.engine.slices import finish, in_slices
from supdist.engine.supervisor.best_answer import find_answer_blocks, find_literal_final
from supdist.engine.supervisor.blocks import find_code_blocks
from supdist.engine.supervisor.transcript import show_results
from supdist.handlers import (
    BuiltinWorker,
    Completion,
    Message,
    ModelHandler,
    OpenAIHandler,
    Price,
    ScriptedHandler,
    Unavailable,
)
from supdist.handlers.base import call_chat, call_chat_batch, call_chat_stream

pytestmark = pytest.mark.timing

T = TypeVar("T")

LAW_SECONDS = 0.02
TRIES = 6
MIB = 1 << 20


def waited_for_processor() -> float:
    """Seconds that this thread was ready while others had the processor, as in tests/attacks/lab.py."""
    others = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    with open("/proc/stat", encoding="ascii") as file:
        steal = int(file.readline().split()[8])
    return others + steal / os.sysconf("SC_CLK_TCK")


class Heartbeat:
    """The longest gap of the event loop, without waits for a processor."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def beat(self) -> None:
        while True:
            waited, started = waited_for_processor(), time.monotonic()
            await asyncio.sleep(0.001)
            gap = time.monotonic() - started - (waited_for_processor() - waited)
            self.longest = max(self.longest, gap - 0.001)


@contextlib.asynccontextmanager
async def heartbeat() -> AsyncGenerator[Heartbeat]:
    heart = Heartbeat()
    # A full collection takes as long as the whole process has objects: pytest's are not the engine's.
    gc.collect()
    gc.freeze()
    beating = asyncio.ensure_future(heart.beat())
    await asyncio.sleep(0.01)
    try:
        yield heart
    finally:
        await asyncio.sleep(0.01)
        beating.cancel()
        gc.unfreeze()


async def hold_the_law(work: Callable[[], Awaitable[T]], check: Callable[[T], None] | None = None) -> None:
    """Do some work; fail if each try has a gap. ``check`` sees the result of each, untimed."""
    gaps: list[float] = []
    for _ in range(TRIES):
        async with heartbeat() as heart:
            result = await work()
        if check is not None:
            check(result)
        gaps.append(heart.longest)
        if heart.longest < LAW_SECONDS:
            return
    pytest.fail(f"gaps in ms: {[round(gap * 1000) for gap in gaps]}")


class Quick(ModelHandler):
    model, price, window = "quick", Price(0, 0), 100_000

    async def chat(self, messages: Sequence[Message]) -> Completion:
        await asyncio.sleep(0)
        return Completion("x")


CELLS = {
    "control bytes": "import sys; sys.stdout.write('\\x01' * (15 << 20))",
    "updates": "import sys; sys.stdout.write('a\\r' * (1 << 19) + '\\x1b[K' * (1 << 17))",
    "wide": "import sys; sys.stdout.buffer.write('\u20ac'.encode() * (5 << 20))",
    "one emoji": "import sys; sys.stdout.buffer.write(b'a' * (15 << 20) + chr(0x1F600).encode())",
    "invalid": "import sys; sys.stdout.buffer.write(b'\\xff' * (15 << 20))",
    "newlines": "print('\\n' * 15_000_000)",
    "answer": "FINAL(chr(0x1F600) * ((8 << 20) - 10))",
    "html": "class H:\n    def _repr_html_(self): return '\\x01' * (7 << 20)\nH()",
    "svg": "class S:\n    def _repr_svg_(self): return '\u20ac' * (2 << 20)\nS()",
    "long prompts": "worker_batch(['\\x01' * (3 << 20)] * 8)",
    "wide prompts": "worker_batch([chr(0x1F600) * (700 << 10) + str(i) for i in range(8)])",
    "tiny prompts": "worker_batch([str(i) for i in range(10_000)])",
}


@pytest.mark.parametrize("code", CELLS.values(), ids=CELLS)
async def test_no_cell_holds_up_the_loop(code: str) -> None:
    async def answer(call: WorkerCall) -> list[str]:
        await asyncio.sleep(0.01)
        return ["x"] * len(call.prompts)

    async with open_sandbox(SandboxConfig(), on_call=answer) as sandbox:

        async def run_and_show() -> None:
            await in_slices(show_results([await sandbox.execute(code)], 1, 2000))

        await hold_the_law(run_and_show)


@pytest.mark.parametrize("name", ["long prompts", "wide prompts", "tiny prompts"])
async def test_no_prompts_hold_up_the_loop_on_their_way_through_the_broker(name: str) -> None:
    async def ask() -> None:
        await arun(
            query="q",
            context="",
            supervisor=ScriptedHandler([f"```repl\n{CELLS[name]}\nFINAL(1)\n```"]),
            worker=Quick(),
            max_tokens=10**9,
            max_iterations=1,
        )

    async with SandboxRuntime():
        await hold_the_law(ask)


MESSAGES = {
    "backticks": "`" * 3_000_000,
    "openings": "```repl\n" * 300_000,
    "lines": "x\n" * 3_000_000,
    "long list": "```repl\nx = 1\n" + "x = [1, 2, 3]\n" * 15_000 + "\n```\n```repl\n1\n```",
    "long string": "```repl\nx = '''a\n" + "x = [1]\n" * 15_000 + "'''\n```\n```repl\n1\n```",
    "many blocks": "```repl\nx = 1\n```\n" * 100_000,
    "quoted line": "> ```repl\n" + ">" * 2_000_000 + "\n> ```",
    "quoted spaces": "> ```repl\n" + " " * 2_000_000 + "\n> ```",
    "indented line": " ```repl\n" + "a" * 2_000_000 + "\n ```",
    "indented spaces": "  ```repl\n" + " " * 2_000_000 + "a\n  ```",
    "escapes": "```repl\nx='''" + "\\" * 150_000 + "\n```\n```repl\ny\n```",
    "dense code": "```repl\nx='''a'''\ny=" + "(" * 90 + "a," * 3800 + ")" * 90 + "$\n```\nx\n```",
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
async def test_no_message_of_a_supervisor_holds_up_the_loop(message: str) -> None:
    expected = finish(find_code_blocks(message))

    def is_the_same(found: list[str]) -> None:
        assert found == expected

    await hold_the_law(lambda: in_slices(find_code_blocks(message)), is_the_same)


@pytest.mark.parametrize(
    "context", ["\xe9" * (50 * MIB), {str(i): "x" * 1000 for i in range(50_000)}], ids=["text", "dict"]
)
async def test_no_context_holds_up_the_loop_while_it_is_encoded(context: str | dict[str, str]) -> None:
    async def write_twice() -> tuple[ContextMemory, int, int]:
        memory = ContextMemory()
        fd, _ = await memory.written(context)
        again, _ = await memory.written(context)
        return memory, fd, again

    def is_written_once(written: tuple[ContextMemory, int, int]) -> None:
        memory, fd, again = written
        # The same text is not written again.
        assert isinstance(context, dict) or os.fstat(fd).st_ino == os.fstat(again).st_ino
        for each in (fd, again):
            os.close(each)
        memory.close()

    await hold_the_law(write_twice, is_written_once)


@contextlib.asynccontextmanager
async def endpoint(folder: Path, *replies: object) -> AsyncGenerator[OpenAIHandler]:
    """A handler of a scripted endpoint, which is another process with a loop of its own."""
    script = folder / "replies.json"
    script.write_text(json.dumps(replies))
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "supdist.tools.testing.fake_openai", str(script), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        url = (await server.stdout.readline()).decode().strip()
        async with OpenAIHandler("m", base_url=url, timeout=30, tokens_per_minute=10**12) as handler:
            # The first request imports the SDK and makes the client.
            await handler.chat([{"role": "user", "content": "x"}])
            yield handler
    finally:
        server.terminate()
        await server.wait()


@pytest.mark.parametrize(
    "prompt",
    ["\x01" * (3 << 20), "\U0001f600" * (700 << 10), "word " * (600 << 10)],
    ids=["control bytes", "wide", "words"],
)
async def test_no_request_to_an_endpoint_holds_up_the_loop(prompt: str, tmp_path: Path) -> None:
    asked: list[Message] = [{"role": "user", "content": prompt}]
    async with endpoint(tmp_path, *["x"] * (1 + 8 * TRIES)) as handler:
        await hold_the_law(lambda: call_chat_batch(handler, [asked] * 8))


REPLIES = {
    "long text": "word " * 20_000,
    "escapes": "\U0001f600" * 150_000,
    "longest": "a" * (15 << 20),
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_no_reply_of_an_endpoint_holds_up_the_loop(reply: str, streamed: bool, tmp_path: Path) -> None:
    asked: list[Message] = [{"role": "user", "content": "x"}]
    async with endpoint(tmp_path, "x", *[reply] * (3 * TRIES)) as handler:

        async def ask() -> None:
            # The longest is refused.
            with contextlib.suppress(Unavailable):
                await (handler.chat_stream(asked, lambda _: None) if streamed else handler.chat(asked))

        await hold_the_law(ask)


THOUGHTS = {
    "tags": "<think>" * 300_000,
    "closing": "a</think>" * 230_000,
    "angles": "<" * (2 << 20),
    "fences": "<think>\n```\n" * 170_000,
    "spaces": "<think>" + " " * (2 << 20),
    "kinds": "".join(f"\n<think:{i}>" for i in range(120_000)),
    "quotes": "'<think>' '</think>' " * 100_000,
    "backticks": "`" * (2 << 20) + "<think>",
}


@pytest.mark.parametrize("reply", THOUGHTS.values(), ids=THOUGHTS)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_no_thoughts_hold_up_the_loop(reply: str, streamed: bool) -> None:
    handler = ScriptedHandler(lambda _: Completion(reply))
    asked: list[Message] = [{"role": "user", "content": "x"}]

    async def ask() -> None:
        await (call_chat_stream(handler, asked, lambda _: None) if streamed else call_chat(handler, asked))

    await hold_the_law(ask)


BUILTIN = {
    "words": ["Question: what word\nText:\n" + "word " * 600_000],
    "sentences": ["Question: what does fox 7 say\nText:\n" + "Fox 7 is red. It ran.\n" * 30_000],
    "paragraphs": ["x\n\n" * 1_000_000],
    "spaces": ["Question: x\nText:\na" + " " * 3_000_000 + "b"],
    "wide": ["Question: x\nText:\n" + "\u00c9t\u00e9. " * 100_000],
    "question": [" ".join(map(str, range(100_000)))],
    "many": [f"Question: {i}\nText:\n{i}" for i in range(10_000)],
}


@pytest.mark.parametrize("prompts", BUILTIN.values(), ids=BUILTIN)
async def test_no_prompt_of_the_builtin_worker_holds_up_the_loop(prompts: list[str]) -> None:
    worker = BuiltinWorker()
    # The first call imports a library.
    await worker.chat([{"role": "user", "content": "x"}])

    async def ask_all() -> None:
        for start in range(0, len(prompts), worker.batch_size):
            batch: list[list[Message]] = [
                [{"role": "user", "content": prompt}] for prompt in prompts[start : start + worker.batch_size]
            ]
            await call_chat_batch(worker, batch)

    await hold_the_law(ask_all)


ANSWERS = {
    "long list": "```\n" + "x = [1, 2, 3]\n" * 14_000 + "```",
    "bare code": "x = [1, 2, 3]\n" * 14_000,
    "f-string": 'FINAL(f"""' + "{[1, 2, 3]}" * 15_000 + '""")',
    "comments": "# '''\n" + "f(1)\n" * 30_000,
    "quotes": "'\"" * 99_000,
    "brackets": "FINAL(" + "(" * 90 + "a, " * 300 + ")" * 90 + " $ x)",
    "newlines": "```x\n" + "\n" * 190_000 + "```",
    "spaces": "FINAL(1)" + " " * 190_000 + "x",
    "lines of a string": "FINAL('''" + "\n x" * 60_000 + "''')",
    "fences": "```x\nFINAL(1)\n```\n" * 10_000,
    "backslashes": "FINAL('" + "\\" * 190_000 + "')",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_no_best_answer_holds_up_the_loop(answer: str) -> None:
    async def find() -> None:
        await in_slices(find_answer_blocks(answer))
        await in_slices(find_literal_final(answer))

    await hold_the_law(find)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_no_step_of_finding_a_best_answer_is_long(answer: str) -> None:
    """No step takes a fifth of the law: a machine that is five times slower holds it, too."""

    def longest_step() -> float:
        longest = 0.0
        for steps in (find_answer_blocks(answer), find_literal_final(answer)):
            is_done = False
            while not is_done:
                started = time.thread_time()
                is_done = next(steps, "done") == "done"
                longest = max(longest, time.thread_time() - started)
        return longest

    gc.collect()
    gc.freeze()
    try:
        assert min(longest_step() for _ in range(TRIES)) < LAW_SECONDS / 5
    finally:
        gc.unfreeze()
