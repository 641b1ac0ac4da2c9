"""Group 10: what the guest sends stays bytes and text on the host."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
from attacks.lab import RAW, Arena, comes_true, outside, timed
from process_support import COMMAND
from support import block

from supdist.engine import SandboxConfig, arun
from supdist.engine.sandbox import CallError, WorkerCall
from supdist.handlers import ScriptedHandler
from supdist.sandbox_image.text import printable

PICKLE = """
import os, pickle
class Evil:
    def __reduce__(self): return (os.system, ({command!r},))
data = pickle.dumps(Evil())
"""
SPREAD = """
import base64, sys
text = data.decode("latin-1")
os.write(1, data); os.write(2, b"safe:" + data)
print("pickle:" + base64.b64encode(data).decode())
open("/work/answer.pkl", "wb").write(data)
try: worker(text)
except WorkerError: pass
FINAL(text)
"""


@pytest.mark.parametrize("row", ["PK1", "PK2"])
async def test_a_pickle_in_every_field_is_never_loaded(arena: Arena, tmp_path: Path, row: str) -> None:
    """On both streams, in a prompt, an answer, a file and an exception, with prefixes others obey."""
    canary = tmp_path / "loaded"
    code = PICKLE.format(command=f"touch {canary}") + SPREAD + "raise type(text[:50], (Exception,), {})(text)"
    prompts: list[str] = []

    async def answer(call: WorkerCall) -> list[str | CallError]:
        prompts.extend(call.prompts)
        return ["safe:" + prompt for prompt in call.prompts]

    async with arena.open(on_call=answer, context=pickle.dumps(row)) as sandbox:
        result = await timed(sandbox, code)
    assert len(prompts) == 1
    assert result.final == prompts[0]
    assert "posix" in result.stdout
    assert not canary.exists()
    await asyncio.to_thread(pickle.loads, prompts[0].encode("latin-1"))
    assert await comes_true(canary.exists), "loaded, it would have run"


async def test_pk1_a_pickle_through_a_whole_run_is_never_loaded(
    tmp_path: Path, limits: SandboxConfig
) -> None:
    canary = tmp_path / "loaded"
    code = PICKLE.format(command=f"touch {canary}") + SPREAD
    result = await arun(
        query="q", context="c", log_dir=tmp_path / "logs", sandbox=limits,
        supervisor=ScriptedHandler([block(code)]), worker=ScriptedHandler(lambda m: m[-1]["content"]),
    )  # fmt: skip
    assert result.answer is not None
    assert "posix" in result.answer
    assert not canary.exists()


async def test_pk3_the_engine_deserialises_nothing(arena: Arena, audited: list[str]) -> None:
    """Show that the hook, installed since the start of the suite, sees the engine's files."""
    async with arena.open(context={"a": (1, 2)}) as sandbox:
        await timed(sandbox, "FINAL(context)")
    assert audited == []
    import supdist.engine

    fake = compile("loads(data)", f"{Path(supdist.engine.__file__).parent}/fake.py", "exec")
    exec(fake, {"loads": pickle.loads, "data": pickle.dumps(Path("x"))})
    assert audited
    assert all("fake.py" in entry for entry in audited)
    audited.clear()


async def test_pk3_the_engine_does_not_even_import_the_dangerous(arena: Arena) -> None:
    code = f"""
import sys
from supdist.engine import SyncSandbox
with SyncSandbox({arena.machine.source}, context=[1]) as sandbox: sandbox.execute("FINAL(context)")
names = ("dill", "cloudpickle", "joblib", "torch", "numpy", "pandas", "yaml", "shelve")
print([name for name in names if name in sys.modules])
"""
    assert await outside(code, timeout=60) == "[]\n"


async def test_pk5_an_exception_is_known_by_its_text_alone(arena: Arena, tmp_path: Path) -> None:
    canary = tmp_path / "made"
    names = [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "supdist.engine.errors.TaskError",
        "SystemExit",
        "KeyboardInterrupt",
    ]
    async with arena.open() as sandbox:
        for name in names:
            result = await timed(
                sandbox, f"raise type({name!r}, (Exception,), {{'class_path': {name!r}}})('touch {canary}')"
            )
            assert result.error is not None
            assert result.error.type == name
        result = await timed(
            sandbox,
            RAW + f"send(24, cell, ['pathlib.Path', 'touch {canary}', '{{0.__class__}}'])\n"
            f"import time; time.sleep(60)",
        )
    assert result.error is not None
    assert type(result.error.type) is str
    assert not canary.exists()


TEMPLATES = [
    "{0.__class__.__mro__}", "%(x)s %n %s", "${HOME}", "{{7*7}}",
    "[bold red]x[/] [link=http://127.0.0.1]y[/link]", "{query}", "{outcome!r:>9999999}", "f'{1+1}'", "\\g<0>",
    "{", "}", "%", "[/]", "[", "$(id)", "`id`",
]  # fmt: skip


async def test_pk6_no_text_is_a_template(tmp_path: Path) -> None:
    text = " ".join(TEMPLATES)
    replies = [
        (
            f"{text}\n```repl\nimport sys\nprint({text!r}); print({text!r}, file=sys.stderr)\n"
            f"raise ValueError({text!r})\n```"
        ),
        f"```repl\nFINAL({text!r} + worker({text!r}))\n```",
    ]
    task = {
        "query": text, "context": text, "log_dir": "logs",
        "supervisor": {"handler": "scripted", "replies": replies},
        "worker": {"handler": "scripted", "replies": [text]},
    }  # fmt: skip
    (tmp_path / "task.json").write_text(json.dumps(task))
    done = await asyncio.to_thread(
        subprocess.run, [*COMMAND, "run", "task.json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == printable(text + text)
    assert "__mro__" in done.stdout
    assert "<class" not in done.stdout + done.stderr
    shown: list[dict[str, Any]] = [
        json.loads(line) for line in (tmp_path / "logs/supervisor.jsonl").read_text().splitlines()
    ]
    conversation = json.dumps([event.get("messages", "") for event in shown])
    assert conversation.count(json.dumps(text)[1:-1]) >= 4, "query, output, errors: as they were"
