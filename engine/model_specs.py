"""The models of a task: of its specification, else of the environment, else builtin.

``check`` and ``build`` raise ``TaskError`` for what is wrong or not permitted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter

from ..handlers import (
    BuiltinSupervisor,
    BuiltinWorker,
    ModelHandler,
    OpenAIHandler,
    ScriptedHandler,
    VLLMHandler,
)
from ..handlers.local_servers import LocalServerHandler, ServerKind
from ..handlers.openai_options import OPENAI_URL, TOGETHER_URL
from .arguments import reject
from .config import RunConfig
from .errors import TaskError
from .model_presets import NO_KEY, fields_of, is_preset
from .native_specs import AnthropicSpec, GeminiSpec
from .spec_fields import STRICT, EndpointSpec
from .trust import UNBOUND, Environment, Permissions
from .trust.hosts import ENDPOINT_VARIABLES, keys_of, origin_of
from .trust.permissions import KeyNames, readable_files

Role = Literal["supervisor", "worker"]

# A name at Hugging Face's hub. Everything else that vLLM takes is a path or a URL.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

# For a model that only the environment names.
_SAMPLING: dict[Role, dict[str, Any]] = {
    "supervisor": {"temperature": 0.7, "max_tokens": 2048},
    "worker": {"temperature": 0.2, "max_tokens": 512},
}
_TOGETHER: dict[Role, str] = {
    "supervisor": "meta-llama/Llama-3.3-70B-Instruct-Turbo",
    "worker": "meta-llama/Llama-3.1-8B-Instruct-Turbo",
}
# For an endpoint without a key. Without it the handler would look for a key of its own.
_PLACEHOLDER_KEY = "none"

_HOW_TO_WRAP = "; for a function: supdist.handlers.ScriptedHandler(function)"
_HOW_TO_NAME = 'name it, as "ollama/qwen3:8b", or make one: supdist.handlers.OpenAIHandler("MODEL")'

_OPENAI: dict[Role, str] = {"supervisor": "gpt-4.1", "worker": "gpt-4.1-mini"}


class OpenAISpec(EndpointSpec):
    """A model behind an OpenAI-compatible endpoint."""

    handler: Literal["openai"]
    base_url: str | list[str] | None = Field(
        default=None, description="the endpoint, OpenAI's by default; or several that share the load"
    )
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1, description="prompts and answers together")
    extra_body: dict[str, Any] | None = Field(default=None, description="more fields for the request's body")
    extra_headers: dict[str, str] | None = Field(
        default=None, description="more headers; put a key into a variable, and name it in api_key_env"
    )
    server: ServerKind | None = Field(
        default=None, description="the kind of server at the one URL; it is asked for the window"
    )

    def check(self, role: str, folder: Path, permissions: Permissions) -> None:
        """Check that the key may go to the endpoint."""
        # A Host header could send the key on to another host than the permitted one.
        if any(name.lower() == "host" for name in self.extra_headers or {}):
            raise TaskError(f"{role}.extra_headers: Host is not allowed; base_url names the host")
        self.endpoint(role, permissions)

    def build(
        self, role: Role, folder: Path, worker_ctx_k: int, permissions: Permissions = UNBOUND
    ) -> ModelHandler:
        """Return the handler."""
        self.check(role, folder, permissions)
        price = None if self.price is None else self.price.price()
        urls, keys = self.endpoint(role, permissions)
        fields: dict[str, Any] = self.model_dump(
            exclude={"handler", "price", "base_url", "api_key_env", "server"}
        )
        try:
            if self.server is not None:
                fields["server"] = self.server
                return LocalServerHandler(base_url=urls, api_key_env=keys, price=price, **fields)
            return OpenAIHandler(base_url=urls, api_key_env=keys, price=price, **fields)
        except ValueError as error:
            raise TaskError(f"{role}: {error}") from error

    def endpoint(self, role: str, permissions: Permissions) -> tuple[str | list[str] | None, KeyNames]:
        """Return the URLs, and the variables of the keys that may be sent there.

        Raises:
            TaskError: a key is not permitted.
        """
        urls = permissions.default_url if self.base_url is None else self.base_url
        listed = [urls] if isinstance(urls, str) else urls or []
        if self.api_key_env == NO_KEY:
            return urls, dict.fromkeys(listed)
        name = f"{role}.base_url" if self.api_key_env is None else f"{role}.api_key_env"
        return urls, permissions.keys(listed, self.api_key_env, name)


class VLLMSpec(BaseModel):
    """A model in the engine's own process, through vLLM (extra ``vllm``)."""

    model_config = STRICT

    handler: Literal["vllm"]
    model: str = Field(min_length=1, description="a name or a path, as vLLM takes it")
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1)
    max_model_len: int | None = Field(default=None, ge=1, description="the window in tokens")
    engine_args: dict[str, Any] | None = Field(default=None, description="more of vLLM's AsyncEngineArgs")

    def check(self, role: str, folder: Path, permissions: Permissions) -> None:
        """Check the options and the path of the model."""
        # Some options of vLLM run the model's own code in the engine.
        if self.engine_args:
            given = ", ".join(self.engine_args)
            permissions.require_trust(
                f"{role}.engine_args",
                f"gives vLLM options ({given}), some of which run a model's own code in the engine",
            )
        self._model(role, permissions)

    def build(
        self, role: Role, folder: Path, worker_ctx_k: int, permissions: Permissions = UNBOUND
    ) -> ModelHandler:
        """Return the handler."""
        self.check(role, folder, permissions)
        fields = self.model_dump(exclude={"handler", "model"})
        return VLLMHandler(model=self._model(role, permissions), **fields)

    def _model(self, role: str, permissions: Permissions) -> str:
        if _HUB_NAME.fullmatch(self.model):
            return self.model
        # vLLM opens a path from the working directory, and not from the folder of the task file.
        if "://" in self.model:
            permissions.require_trust(f"{role}.model", "has vLLM load a model by its URL")
            return self.model
        return str(permissions.readable(Path(self.model), f"{role}.model"))


class ScriptedSpec(BaseModel):
    """Fixed replies, in the task file or in a file beside it."""

    model_config = STRICT

    handler: Literal["scripted"]
    model: str = "scripted"
    replies: list[str] | None = None
    replies_file: str | None = Field(
        default=None, description="JSON list, or JSON Lines; relative to the task file"
    )

    def check(self, role: str, folder: Path, permissions: Permissions) -> None:
        """Check that the file may be read."""
        if self.replies_file is not None:
            permissions.readable(folder / self.replies_file, f"{role}.replies_file")

    def build(
        self, role: Role, folder: Path, worker_ctx_k: int, permissions: Permissions = UNBOUND
    ) -> ModelHandler:
        """Return the handler."""
        if (self.replies is None) == (self.replies_file is None):
            raise TaskError(f"{role}: a scripted handler takes either `replies` or `replies_file`")
        if self.replies_file is None:
            return ScriptedHandler(self.replies or [], model=self.model)
        path = permissions.readable(folder / self.replies_file, f"{role}.replies_file")
        try:
            return ScriptedHandler.from_file(path, model=self.model)
        except (OSError, ValueError) as error:
            raise TaskError(f"{role}: {error}") from error


class BuiltinSpec(BaseModel):
    """The builtin pair. It is not a language model."""

    model_config = STRICT

    handler: Literal["builtin"]

    def check(self, role: str, folder: Path, permissions: Permissions) -> None:
        """Allow it: it reads no file and sends no key."""

    def build(
        self, role: Role, folder: Path, worker_ctx_k: int, permissions: Permissions = UNBOUND
    ) -> ModelHandler:
        """Return the handler."""
        return builtin(role, worker_ctx_k)


class BrokerSpec(BaseModel):
    """The model that a model server (`supdist-engine broker`) has for this role."""

    model_config = STRICT

    handler: Literal["broker"]
    address: str = Field(description="ipc://PATH or tcp://HOST:PORT")
    curve_keys: str | None = Field(
        default=None, description="the folder with the client's keys; relative to the task file"
    )
    timeout: float = Field(
        default=600.0, gt=0, description="seconds for an answer, with the wait for its turn"
    )

    def check(self, role: str, folder: Path, permissions: Permissions) -> None:
        """Check that the keys may be read."""
        self._keys(role, folder, permissions)

    def build(
        self, role: Role, folder: Path, worker_ctx_k: int, permissions: Permissions = UNBOUND
    ) -> ModelHandler:
        """Return the handler."""
        # Inside: it imports ZeroMQ, which only this handler needs.
        from .service import RemoteHandler

        keys = self._keys(role, folder, permissions)
        return RemoteHandler(role, self.address, curve_keys=keys, timeout=self.timeout)

    def _keys(self, role: str, folder: Path, permissions: Permissions) -> Path | None:
        if self.curve_keys is None:
            return None
        return readable_files(permissions, folder / self.curve_keys, f"{role}.curve_keys")


_Whole = OpenAISpec | AnthropicSpec | GeminiSpec | VLLMSpec | ScriptedSpec | BuiltinSpec | BrokerSpec


def _whole(value: object) -> object:
    try:
        return fields_of(value, os.environ) if isinstance(value, str) else value
    except TaskError as error:
        raise ValueError(str(error)) from error


# A text is a short name: its preset, of model_presets.py, gives the other fields.
ModelSpec = Annotated[
    _Whole,
    Field(discriminator="handler"),
    BeforeValidator(_whole, json_schema_input_type=Annotated[_Whole, Field(discriminator="handler")] | str),
]


def model_named(text: str, environ: Mapping[str, str] = os.environ) -> ModelSpec:
    """Return the specification of a short name, such as ``ollama/qwen3:8b``.

    Raises:
        TaskError: the name is wrong.
    """
    return TypeAdapter[ModelSpec](ModelSpec).validate_python(fields_of(text, environ))


def handler_named(role: Role, model: object, worker_ctx_k: int) -> ModelHandler:
    """Return the handler that a short name stands for, or the handler itself.

    Raises:
        TaskError: the name is wrong, or it is neither.
    """
    if isinstance(model, str):
        try:
            return model_named(model).build(role, Path(), worker_ctx_k)
        except TaskError as error:
            raise TaskError(f"{role}: {error}") from error
    if not isinstance(model, ModelHandler):
        reject(
            role,
            model,
            "a ModelHandler" if role == "supervisor" else "a ModelHandler or None",
            _HOW_TO_NAME + (_HOW_TO_WRAP if callable(model) and not isinstance(model, type) else ""),
        )
    return model


def builtin(role: Role, worker_ctx_k: int) -> ModelHandler:
    """Return the builtin model of a role."""
    return BuiltinSupervisor(worker_ctx_k=worker_ctx_k) if role == "supervisor" else BuiltinWorker()


def from_environment(role: Role, environ: Mapping[str, str]) -> ModelHandler | None:
    """Return the model that the environment configures, if any.

    Raises:
        TaskError: as ``specified_by``.
    """
    spec = specified_by(environ, role)
    if spec is None:
        named = _preset_in(environ, role)
        return None if named is None else named.build(role, Path(), RunConfig().worker_ctx_k)
    key = environ[spec.api_key_env] if spec.api_key_env else _PLACEHOLDER_KEY
    return OpenAIHandler(spec.model, base_url=spec.base_url, api_key=key, **_SAMPLING[role])


def configured(environ: Mapping[str, str], role: Role) -> ModelSpec | None:
    """Return a role's specification in the environment; None if it names no endpoint, key or preset.

    Raises:
        TaskError: as ``specified_by``.
    """
    return specified_by(environ, role) or _preset_in(environ, role)


def _preset_in(environ: Mapping[str, str], role: Role) -> ModelSpec | None:
    # With an endpoint, or a key, the variable holds the name that the endpoint knows.
    model = environ.get(f"{role.upper()}_MODEL", "")
    return model_named(model, environ) if is_preset(model) else None


def specified_by(environ: Mapping[str, str], role: Role) -> OpenAISpec | None:
    """Return a role's specification in the environment; None if it names no endpoint and no key.

    Raises:
        TaskError: an endpoint has no model's name, or its URL is not valid.
    """
    model = environ.get(f"{role.upper()}_MODEL")
    # The order: BASE_URL, OPENAI_BASE_URL, Together if its key is set, OpenAI if its key is set.
    named = _named_endpoint(environ)
    if named is not None:
        default = _models_of(named.url).get(role)
        if not model and default is None:
            raise TaskError(
                f"{named.variable} is set, but {role.upper()}_MODEL is not; set it to the model's name"
            )
        url, key, model = named.url, named.key, model or default
    elif environ.get("TOGETHER_API_KEY"):
        url, key, model = TOGETHER_URL, "TOGETHER_API_KEY", model or _TOGETHER[role]
    elif environ.get("OPENAI_API_KEY"):
        url, key, model = None, "OPENAI_API_KEY", model or _OPENAI[role]
    else:
        return None
    # Each branch above has set it, but the type checker cannot see that.
    assert model is not None
    return OpenAISpec(handler="openai", model=model, base_url=url, api_key_env=key, **_SAMPLING[role])


class _NamedEndpoint(NamedTuple):
    # The variable that names the URL, and the one that holds its key.
    variable: str
    url: str
    key: str | None


def _named_endpoint(environ: Mapping[str, str]) -> _NamedEndpoint | None:
    for variable, others in ENDPOINT_VARIABLES.items():
        if url := environ.get(variable):
            own = keys_of(origin_of(url))
            for key in (*own, *others):
                # A .env file must not send a key of the shell to a host that the file names.
                redirected = isinstance(environ, Environment) and environ.redirects(variable, key)
                if environ.get(key) and (key in own or not redirected):
                    return _NamedEndpoint(variable, url, key)
            return _NamedEndpoint(variable, url, None)
    return None


def _models_of(url: str) -> dict[Role, str]:
    return {TOGETHER_URL: _TOGETHER, OPENAI_URL: _OPENAI}.get(url.rstrip("/"), {})
