"""A model in this process, through vLLM's asynchronous engine. Needs the extra ``vllm``."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import os
from collections.abc import Sequence
from contextlib import aclosing
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from anyio import CapacityLimiter, to_thread

from .base import Completion, FinishReason, Message, ModelHandler, PerLoop, Price, Usage
from .chat_tokens import encode_chat as _encode
from .errors import ContextTooLong, Rejected, Unavailable
from .thought_tags import THOUGHT_TOKENS

_REMEDY = (
    "install it with `pip install 'supdist-engine[vllm]'` on a machine with an accelerator that vLLM"
    " supports, or serve the model elsewhere and name its URL to OpenAIHandler"
)
_FINISH: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}

# Engine arguments that decide no answer.
_SECRET = frozenset({"hf_token"})

# Threads that tokenize; more would take the processor from those that feed the device.
_TOKENIZING = 2


class VLLMHandler(ModelHandler):
    """One model in this process. Keep it entered: loading takes minutes."""

    price = Price(0, 0)

    # vLLM batches 256 to 1024 requests and queues the rest, first come, first served. More than this number
    # wait in the broker, where the runs take turns.
    max_concurrency = 4096

    def __init__(
        self,
        model: str,
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
        max_model_len: int | None = None,
        engine_args: dict[str, Any] | None = None,
    ) -> None:
        """Load nothing yet.

        Args:
            model: a name or a path.
            temperature: None is the model's default.
            max_tokens: of an answer; None is the rest of the window.
            max_model_len: the window; None is the model's.
            engine_args: more ``AsyncEngineArgs``.
        """
        self.model = model
        self.max_tokens = max_tokens
        self.samples = temperature != 0
        self._sampling = {"temperature": temperature, "max_tokens": max_tokens}
        own = {"model": model, "max_model_len": max_model_len, "disable_log_stats": True}
        self._engine_args: dict[str, Any] = own | (engine_args or {})
        length: object = self._engine_args["max_model_len"]
        # vLLM takes -1 and "32k", too.
        self.window = length if isinstance(length, int) and length > 0 else None
        self._tokenizer: Any = None
        self._engines = PerLoop[_LoopEngine]()
        self._ending: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}
        self._numbers = itertools.count()

    async def chat(self, messages: Sequence[Message]) -> Completion:
        """Send one request. A cancellation aborts it."""
        async with self:
            loaded = self._engines.get()
            tokens = await to_thread.run_sync(_encode, self._tokenizer, messages, limiter=loaded.tokenizing)
            window: int = loaded.engine.model_config.max_model_len
            if len(tokens) >= window:
                raise ContextTooLong(f"{len(tokens)} tokens; the window of {self.model} holds {window}")
            output = await self._generate(loaded, tokens, window - len(tokens))
        answer = output.outputs[0]
        usage = Usage(len(tokens), len(answer.token_ids), 1)
        return Completion(answer.text, usage, _FINISH.get(answer.finish_reason, "other"))

    def count_tokens(self, messages: Sequence[Message]) -> int | None:
        """Return the tokens that ``chat`` sends; None before the engine is loaded."""
        if self._tokenizer is None:
            return None
        try:
            return len(_encode(self._tokenizer, messages))
        except Rejected:
            return None

    def identity(self) -> dict[str, Any] | None:
        """See ``ModelHandler.identity``. None if an argument is no JSON."""
        arguments = {name: value for name, value in self._engine_args.items() if name not in _SECRET}
        if Path(self.model).exists():
            arguments["model"] = str(Path(self.model).resolve())
        own = {"handler": "vllm", "engine_args": arguments} | self._sampling
        try:
            json.dumps(own, allow_nan=False)
        except (TypeError, ValueError):
            return None
        return own

    async def __aenter__(self) -> VLLMHandler:
        """Load the engine if needed.

        Raises:
            Rejected: vLLM is missing, finds no device, or refuses an argument.
        """
        ending = self._ending.get(asyncio.get_running_loop())
        self._engines.enter(lambda: _LoopEngine(ending))
        try:
            loaded = self._engines.get()
            await loaded.load(self._engine_args)
        except BaseException:
            await self._leave()
            raise
        self._tokenizer = loaded.tokenizer
        self.window = loaded.engine.model_config.max_model_len
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave()

    async def _leave(self) -> None:
        held = self._engines.leave()
        if held is None:
            return
        loop = asyncio.get_running_loop()
        ending = self._ending[loop] = loop.create_task(held.shutdown())
        try:
            await asyncio.shield(ending)
        finally:
            ending.add_done_callback(lambda _: self._ending.pop(loop, None))

    async def _generate(self, loaded: _LoopEngine, tokens: list[int], room: int) -> Any:
        number = f"supdist-{next(self._numbers)}"
        output: Any = None
        try:
            params = self._params(loaded.defaults, room)
            stream = loaded.engine.generate({"prompt_token_ids": tokens}, params, number)
            async with aclosing(stream):
                async for output in stream:  # noqa: B007 - one, the whole answer
                    pass
        except ValueError as error:
            raise Rejected(f"vLLM refused the request: {error}") from error
        # The engine has died, is full, or failed at this request.
        except Exception as error:
            raise Unavailable(f"vLLM failed: {type(error).__name__}: {error}") from error
        if output is None:
            raise Unavailable("vLLM ended the request without an answer")
        return output

    def _params(self, defaults: dict[str, Any], room: int) -> Any:
        given = {name: value for name, value in self._sampling.items() if value is not None}
        wanted = {**defaults, **given}
        wanted["max_tokens"] = min(room, wanted.get("max_tokens") or room)
        sampling: Any = import_module("vllm.sampling_params")
        # Some thoughts stand between special tokens, which the decoder drops: they would become the answer.
        wanted.setdefault("skip_special_tokens", not _thinks_in_special_tokens(self._tokenizer))
        return sampling.SamplingParams(output_kind=sampling.RequestOutputKind.FINAL_ONLY, **wanted)


class _LoopEngine:
    """The engine of one event loop.

    Attributes:
        defaults: the model's sampling defaults.
        tokenizing: limits the threads that tokenize.
    """

    def __init__(self, before: asyncio.Task[None] | None) -> None:
        # The end of an earlier engine, which holds the device until then.
        self._before = before
        self.engine: Any = None
        self.tokenizer: Any = None
        self.defaults: dict[str, Any] = {}
        self.tokenizing = CapacityLimiter(_TOKENIZING)
        self._loading: asyncio.Task[None] | None = None

    async def load(self, engine_args: dict[str, Any]) -> None:
        if self.engine is not None:
            return
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._load(engine_args))
        # Shielded: one user may stop waiting while others still load.
        await asyncio.shield(self._loading)

    async def shutdown(self) -> None:
        if self._loading is not None:
            await asyncio.gather(self._loading, return_exceptions=True)
        if self.engine is not None:
            await to_thread.run_sync(self.engine.shutdown)
            self.engine = None

    async def _load(self, engine_args: dict[str, Any]) -> None:
        if self._before is not None:
            await asyncio.wait([self._before])
            self._before = None
        engine = await to_thread.run_sync(_start, engine_args)
        tokenizer = engine.get_tokenizer()
        self.tokenizer = await tokenizer if inspect.isawaitable(tokenizer) else tokenizer
        self.defaults = engine.model_config.get_diff_sampling_param() or {}
        self.engine = engine


def _start(engine_args: dict[str, Any]) -> Any:
    # A forked engine would keep the sandboxes' sockets open after this process ends.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    # stdout is the caller's: ``run --json`` prints its result there.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    try:
        vllm: Any = import_module("vllm")
        engines: Any = import_module("vllm.v1.engine.async_llm")
    except ImportError as error:
        raise Rejected(f"vLLM is not installed ({error}); {_REMEDY}") from error
    wanted = {name: value for name, value in engine_args.items() if value is not None}
    try:
        return engines.AsyncLLM.from_engine_args(vllm.AsyncEngineArgs(**wanted))
    except Exception as error:
        # No device, no such model, an unknown argument: waiting does not help.
        raise Rejected(f"vLLM did not start: {error}; {_REMEDY}") from error


def _thinks_in_special_tokens(tokenizer: Any) -> bool:
    special: object = getattr(tokenizer, "all_special_tokens", None)
    names = cast("list[object]", special) if isinstance(special, list) else []
    return any(name in THOUGHT_TOKENS for name in names)
