"""Which models a task uses: from its specification, else from the environment, else the builtin pair."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..handlers import (
    BuiltinSupervisor,
    BuiltinWorker,
    ModelHandler,
    OpenAIHandler,
    Price,
    ScriptedHandler,
    VLLMHandler,
)
from ..handlers.openai import TOGETHER_URL
from .errors import TaskError

Role = Literal["supervisor", "worker"]

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)

# Sampling, and the models of an endpoint that only a key names.
_SAMPLING: dict[Role, dict[str, Any]] = {
    "supervisor": {"temperature": 0.7, "max_tokens": 2048},
    "worker": {"temperature": 0.2, "max_tokens": 512},
}
_TOGETHER: dict[Role, str] = {
    "supervisor": "meta-llama/Llama-3.3-70B-Instruct-Turbo",
    "worker": "meta-llama/Llama-3.1-8B-Instruct-Turbo",
}
_OPENAI: dict[Role, str] = {"supervisor": "gpt-4.1", "worker": "gpt-4.1-mini"}


class PriceSpec(BaseModel):
    """US dollars for a million tokens."""

    model_config = _STRICT

    input_usd: float = Field(ge=0, allow_inf_nan=False)
    output_usd: float = Field(ge=0, allow_inf_nan=False)


class OpenAISpec(BaseModel):
    """A model behind an OpenAI-compatible endpoint."""

    model_config = _STRICT

    handler: Literal["openai"]
    model: str = Field(min_length=1, description="the model's name at the endpoint")
    base_url: str | list[str] | None = Field(
        default=None, description="the endpoint, OpenAI's by default; or several that share the load"
    )
    api_key_env: str | None = Field(default=None, description="the environment variable that holds the key")
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1, description="at most so many in an answer")
    timeout: float = Field(default=120.0, gt=0, description="seconds of silence that end an attempt")
    max_retries: int = Field(default=2, ge=0, le=20)
    max_concurrency: int = Field(default=32, ge=1, le=10_000, description="requests at once")
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1, description="prompts and answers together")
    extra_body: dict[str, Any] | None = Field(default=None, description="more fields for the request's body")
    extra_headers: dict[str, str] | None = Field(
        default=None, description="more headers; the key belongs into api_key_env"
    )
    window: int | None = Field(default=None, ge=1, description="tokens of a prompt and its answer together")
    price: PriceSpec | None = Field(default=None, description="US dollars for a million tokens")

    def build(self, role: Role, folder: Path, worker_ctx_k: int) -> ModelHandler:
        """The handler.

        Raises:
            TaskError: a header, a field of the body or an endpoint that cannot be.
        """
        price = None if self.price is None else Price(self.price.input_usd, self.price.output_usd)
        try:
            return OpenAIHandler(**self.model_dump(exclude={"handler", "price"}), price=price)
        except ValueError as error:
            raise TaskError(f"{role}: {error}") from error


class VLLMSpec(BaseModel):
    """A model in the engine's own process, through vLLM (extra ``vllm``)."""

    model_config = _STRICT

    handler: Literal["vllm"]
    model: str = Field(min_length=1, description="a name or a path, as vLLM takes it")
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1)
    max_model_len: int | None = Field(default=None, ge=1, description="the window in tokens")
    engine_args: dict[str, Any] | None = Field(default=None, description="more of vLLM's AsyncEngineArgs")

    def build(self, role: Role, folder: Path, worker_ctx_k: int) -> ModelHandler:
        """The handler."""
        return VLLMHandler(**self.model_dump(exclude={"handler"}))


class ScriptedSpec(BaseModel):
    """Canned replies, in the task file or in a file beside it."""

    model_config = _STRICT

    handler: Literal["scripted"]
    model: str = "scripted"
    replies: list[str] | None = None
    replies_file: str | None = Field(
        default=None, description="JSON list, or JSON Lines; relative to the task file"
    )

    def build(self, role: Role, folder: Path, worker_ctx_k: int) -> ModelHandler:
        """The handler."""
        if (self.replies is None) == (self.replies_file is None):
            raise TaskError(f"{role}: a scripted handler takes either `replies` or `replies_file`")
        if self.replies_file is None:
            return ScriptedHandler(self.replies or [], model=self.model)
        try:
            return ScriptedHandler.from_file(folder / self.replies_file, model=self.model)
        except (OSError, ValueError) as error:
            raise TaskError(f"{role}: {error}") from error


class BuiltinSpec(BaseModel):
    """The builtin pair; it is no language model."""

    model_config = _STRICT

    handler: Literal["builtin"]

    def build(self, role: Role, folder: Path, worker_ctx_k: int) -> ModelHandler:
        """The handler."""
        return builtin(role, worker_ctx_k)


class BrokerSpec(BaseModel):
    """The model that a broker service (`supdist-engine broker`) has for this role."""

    model_config = _STRICT

    handler: Literal["broker"]
    address: str = Field(description="ipc://PATH or tcp://HOST:PORT")
    curve_keys: str | None = Field(
        default=None, description="the folder with the client's keys; relative to the task file"
    )
    timeout: float = Field(default=600.0, gt=0, description="seconds for an answer, its turn included")

    def build(self, role: Role, folder: Path, worker_ctx_k: int) -> ModelHandler:
        """The handler."""
        from .service import RemoteHandler

        keys = folder / self.curve_keys if self.curve_keys is not None else None
        return RemoteHandler(role, self.address, curve_keys=keys, timeout=self.timeout)


ModelSpec = Annotated[
    OpenAISpec | VLLMSpec | ScriptedSpec | BuiltinSpec | BrokerSpec, Field(discriminator="handler")
]


def builtin(role: Role, worker_ctx_k: int) -> ModelHandler:
    """The builtin model of a role."""
    return BuiltinSupervisor(worker_ctx_k=worker_ctx_k) if role == "supervisor" else BuiltinWorker()


def from_environment(role: Role, environ: Mapping[str, str]) -> OpenAIHandler | None:
    """The endpoint that ``specified_by`` the environment; None where there is none.

    Raises:
        TaskError: ``BASE_URL`` without the model's name.
    """
    spec = specified_by(environ, role)
    if spec is None:
        return None
    key = environ[spec.api_key_env] if spec.api_key_env else None
    return OpenAIHandler(spec.model, base_url=spec.base_url, api_key=key, **_SAMPLING[role])


def specified_by(environ: Mapping[str, str], role: Role) -> OpenAISpec | None:
    """What the environment says of a role's model, without the key; None where it configures no endpoint.

    ``TOGETHER_API_KEY`` means Together, else ``OPENAI_API_KEY`` OpenAI; ``BASE_URL`` names another endpoint,
    ``SUPERVISOR_MODEL`` and ``WORKER_MODEL`` other models.

    Raises:
        TaskError: ``BASE_URL`` without the model's name.
    """
    base_url, model = environ.get("BASE_URL"), environ.get(f"{role.upper()}_MODEL")
    if environ.get("TOGETHER_API_KEY"):
        key, url, default = "TOGETHER_API_KEY", TOGETHER_URL, _TOGETHER[role]
    elif environ.get("OPENAI_API_KEY"):
        key, url, default = "OPENAI_API_KEY", None, _OPENAI[role]
    elif base_url:
        key, url, default = None, None, ""
    else:
        return None
    if base_url and not model and base_url.rstrip("/") != (url or ""):
        raise TaskError(f"BASE_URL is set, but {role.upper()}_MODEL is not: name the model to use there")
    return OpenAISpec(
        handler="openai", model=model or default, base_url=base_url or url, api_key_env=key, **_SAMPLING[role]
    )
