"""A model in the engine's own process, through vLLM's asynchronous engine. Needs the extra ``vllm``.

Every request goes to vLLM at once; its continuous batching does the rest. The engine starts with the first
request of an event loop's first user and ends when the last one leaves.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from importlib import import_module
from types import TracebackType
from typing import Any

from .base import Completion, FinishReason, Message, ModelHandler, PerLoop, Price, Usage
from .errors import ContextTooLong, Rejected, Unavailable

_REMEDY = "install it with `pip install 'supdist-engine[vllm]'` on a machine with a supported accelerator"
_FINISH: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}


class VLLMHandler(ModelHandler):
    """Offline inference of one model. Loading it takes from seconds to minutes; keep the handler entered."""

    price = Price(0, 0)

    def __init__(
        self,
        model: str,
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
        max_model_len: int | None = None,
        engine_args: dict[str, Any] | None = None,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            model: a name or a path, as vLLM takes it.
            temperature: of sampling; the model's own default where None.
            max_tokens: at most so many tokens in an answer; what is left of the window where None.
            max_model_len: the window in tokens; the model's own where None.
            engine_args: more of vLLM's ``AsyncEngineArgs``.
        """
        self.model = model
        self._sampling = {"temperature": temperature, "max_tokens": max_tokens}
        self._engine_args: dict[str, Any] = {
            "model": model,
            "max_model_len": max_model_len,
            **(engine_args or {}),
        }
        self._engines = PerLoop[_LoopEngine]()
        self._numbers = itertools.count()

    async def chat(self, messages: Sequence[Message]) -> Completion:
        """One request. Cancelling it aborts it in the engine."""
        async with self:
            engine = await self._engines.get().get(self._engine_args)
            tokens = _tokens(engine, messages)
            window: int = engine.model_config.max_model_len
            if len(tokens) >= window:
                raise ContextTooLong(f"{len(tokens)} tokens; the window of {self.model} holds {window}")
            params = self._params(engine, window - len(tokens))
            outputs: list[Any] = []
            try:
                stream = engine.generate(
                    {"prompt_token_ids": tokens}, params, f"supdist-{next(self._numbers)}"
                )
                outputs = [output async for output in stream]
            except ValueError as error:
                raise Rejected(f"vLLM refused the request: {error}") from error
            except Exception as error:
                if engine.errored:
                    raise Unavailable(f"vLLM's engine has died: {error}") from error
                raise
        if not outputs:
            raise Unavailable("vLLM ended the request without an answer")
        answer = outputs[-1].outputs[0]
        usage = Usage(len(tokens), len(answer.token_ids), 1)
        return Completion(answer.text, usage, _FINISH.get(answer.finish_reason, "other"))

    def _params(self, engine: Any, room: int) -> Any:
        given = {name: value for name, value in self._sampling.items() if value is not None}
        defaults: dict[str, Any] = engine.model_config.get_diff_sampling_param() or {}
        wanted = {**defaults, **given}
        wanted["max_tokens"] = min(room, wanted.get("max_tokens") or room)
        sampling: Any = import_module("vllm.sampling_params")
        return sampling.SamplingParams(output_kind=sampling.RequestOutputKind.FINAL_ONLY, **wanted)

    async def __aenter__(self) -> VLLMHandler:
        self._engines.enter(_LoopEngine)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        held = self._engines.leave()
        if held is not None:
            held.shutdown()


class _LoopEngine:
    """The engine of one event loop, started once, by whoever needs it first."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._engine: Any = None

    async def get(self, engine_args: dict[str, Any]) -> Any:
        """The engine. Loading blocks the loop: vLLM ties it to the thread of the loop that made it."""
        async with self._lock:
            if self._engine is None:
                self._engine = _start(engine_args)
            return self._engine

    def shutdown(self) -> None:
        """End the engine and give the device back."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None


def _start(engine_args: dict[str, Any]) -> Any:
    try:
        vllm: Any = import_module("vllm")
        engines: Any = import_module("vllm.v1.engine.async_llm")
    except ImportError as error:
        raise Rejected(f"vLLM is not installed ({error}); {_REMEDY}") from error
    wanted = {name: value for name, value in engine_args.items() if value is not None}
    try:
        return engines.AsyncLLM.from_engine_args(vllm.AsyncEngineArgs(**wanted))
    except (RuntimeError, ValueError, OSError, TypeError) as error:
        # No device, no such model, an argument that this version does not know: none passes by waiting.
        raise Rejected(f"vLLM did not start: {error}; {_REMEDY}") from error


def _tokens(engine: Any, messages: Sequence[Message]) -> list[int]:
    """The conversation in the model's own chat template."""
    conversation = [{"role": message["role"], "content": message["content"]} for message in messages]
    try:
        encoded: Any = engine.get_tokenizer().apply_chat_template(
            conversation, tokenize=True, add_generation_prompt=True, return_dict=False
        )
    except ValueError as error:
        raise Rejected(f"the model has no chat template that fits: {error}") from error
    return list(encoded)
