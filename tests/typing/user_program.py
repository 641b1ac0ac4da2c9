"""Use the public names as a user's program does. ``check.py`` type-checks this file; nothing runs it."""

# ruff: noqa: T201 - a user's program prints

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import assert_type

import supdist.engine
from supdist.engine import (
    CellResult,
    HostTool,
    Outcome,
    Prompts,
    RunConfig,
    RunLimits,
    RunResult,
    SandboxConfig,
    SandboxFileError,
    SandboxUnavailable,
    SyncSandbox,
    TaskError,
    Tool,
    arun,
    open_sandbox,
    run,
)
from supdist.engine.events import Event, RunEnded
from supdist.engine.sandbox import CallError, WorkerCall
from supdist.handlers import (
    Completion,
    ContextTooLong,
    HandlerError,
    Message,
    ModelHandler,
    OpenAIHandler,
    Price,
    ScriptedHandler,
    Unavailable,
    Usage,
)
from supdist.tasks.registry import create

assert_type(supdist.engine.__version__, str)


class EchoHandler(ModelHandler):
    """A model backend with a plain method."""

    model = "echo"
    price = Price(0.1, 0.2)

    def chat(self, messages: Sequence[Message]) -> Completion:
        text = messages[-1]["content"]
        if not text:
            raise Unavailable("nothing to repeat")
        if len(text) > 10_000:
            raise ContextTooLong("too long to repeat")
        return Completion(text, Usage(len(text), len(text), calls=1), finish_reason="stop")


class AsyncEchoHandler(ModelHandler):
    """A model backend with ``async`` methods."""

    model = "async-echo"

    async def chat(self, messages: Sequence[Message]) -> Completion:
        await asyncio.sleep(0)
        return Completion(messages[-1]["content"])

    async def chat_batch(
        self, message_batches: Sequence[Sequence[Message]]
    ) -> list[Completion | HandlerError]:
        return [await self.chat(messages) for messages in message_batches]


def record(key: str) -> str:
    return {"ada": "Ada Lovelace"}[key]


async def slow_record(key: str) -> str:
    await asyncio.sleep(1)
    return record(key)


def initials(name: str) -> str:
    return "".join(word[0] for word in name.split())


TOOLS: dict[str, Tool] = {"initials": initials, "record": HostTool(record, max_calls=10, timeout=5)}
MORE_TOOLS = {"slow_record": HostTool(slow_record, description="Look a record up.")}


def answer_a_question(document: str) -> str | None:
    supervisor = OpenAIHandler(
        model="large",
        base_url=["https://one.example/v1", "https://two.example/v1"],
        temperature=0,
        extra_body={"top_p": 0.9},
        price=Price(0.9, 0.9),
    )
    worker = ScriptedHandler(["the first answer", "the second answer"])
    limits = RunLimits(max_worker_calls=50, max_cost_usd=0.5, max_seconds=60, call_seconds=None)
    result = run(
        query="What are the key findings?",
        context={"paper": document},
        supervisor=supervisor,
        worker=worker,
        limits=limits,
        sandbox=SandboxConfig(memory="512MiB", timeout=30),
        log_dir="logs/my_run",
        prompts=Prompts(nudge_last="Answer now."),
        tools=TOOLS,
        on_event=print_event,
    )
    assert_type(result, RunResult)
    assert_type(result.cost_usd, float | None)
    assert_type(result.worker_usage, Usage)
    assert_type(limits.max_worker_calls, int | None)
    if result.stop_reason == "max_iterations":
        print("no answer in time, after", result.iterations, "turns")
    return result.answer


def answer_with_a_config(document: str) -> float | None:
    config = RunConfig(max_iterations=5, max_cost_usd=0.5, sandbox=SandboxConfig(), on_event=print_event)
    assert_type(config.max_tokens, int | None)
    worker = ScriptedHandler(["an answer"])
    result = run(
        query="Who?", context=document, supervisor=EchoHandler(), worker=worker, config=config, cache="off"
    )
    assert_type(result, RunResult)
    return result.cost_usd


def print_event(event: Event) -> None:
    if isinstance(event, RunEnded) and event.result is not None:
        print(event.result.answer)


async def answer_many(documents: Sequence[str]) -> list[str | None]:
    results = await asyncio.gather(
        *(
            arun(query="Who wrote it?", context=document, supervisor=EchoHandler(), worker=AsyncEchoHandler())
            for document in documents
        )
    )
    assert_type(results, list[RunResult])
    return [result.answer for result in results]


def configure() -> SandboxConfig:
    config = SandboxConfig(memory="512MiB", scratch=512 << 20, output="1MiB", display=1 << 20, prompt="64KiB")
    assert_type(config.memory, int)
    assert_type(config.timeout, float)
    assert config.memory // 2 <= config.scratch
    containers = SandboxConfig(backend="docker", runtime="runsc", warm=4, isolation="best_effort")
    assert_type(containers.runtime, str | None)
    assert_type(SandboxConfig(packages=Path("packages")).packages, str | None)
    return SandboxConfig.model_validate({"memory": "1GiB", "pids": config.pids})


def run_code() -> str:
    with SyncSandbox(configure(), context=[1, 2, 3], tools=TOOLS) as sandbox:
        sandbox.put("data.csv", b"1,2,3")
        result = sandbox.execute("x = sum(context); print(x)", timeout=5)
        show(result)
        names = [file.path for file in sandbox.list(most=10).files]
        data = sandbox.get(names[0], max_bytes=100)
        assert_type(data, bytes)
        sandbox.reset()
        return result.stdout


def show(result: CellResult) -> None:
    assert_type(result.outcome, Outcome)
    assert_type(result.final, str | None)
    if result.outcome == "timeout":
        print("too slow")
    if result.outcome == Outcome.OK:
        print(result.stdout, result.elapsed, result.usage.peak_memory)
    elif result.outcome is Outcome.USER_ERROR and result.error is not None:
        print(result.error.type, result.error.message, result.error.traceback)
    elif result.state_lost:
        print("its variables are gone:", result.detail)
    for display in result.display:
        print(display.as_text(), display.data.get("image/png"))


async def answer_calls(call: WorkerCall) -> list[str | CallError]:
    return [prompt.upper() if prompt else CallError("refused", "no prompt") for prompt in call.prompts]


async def run_code_in_an_event_loop() -> None:
    try:
        async with open_sandbox(context="a text", on_call=answer_calls, tools=MORE_TOOLS) as sandbox:
            result = await sandbox.execute("FINAL(worker(context))")
            assert_type(result, CellResult)
            assert_type(sandbox.isolation.network, bool)
            await sandbox.get("none.txt")
    except SandboxUnavailable as error:
        print(error.capability, error.remedy)
    except SandboxFileError as error:
        print(error.code, error.path)
    except TaskError as error:
        print(error)


async def score_answers(answers: Sequence[str | None]) -> float:
    task = create("needle", {"variant": "multi-key", "length": "128k"})
    examples = task.sample(len(answers), seed=42)
    scores = [await task.score(example, answer) for example, answer in zip(examples, answers, strict=True)]
    values = [score.value for score in scores]
    assert_type(values, list[float])
    return sum(values) / len(values)


if __name__ == "__main__":
    print(supdist.engine.__version__, answer_a_question("a long text"), run_code())
    print(asyncio.run(answer_many(["one", "two"])))
    asyncio.run(run_code_in_an_event_loop())
