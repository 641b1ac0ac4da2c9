"""The settings of an experiment, and its provenance."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from ...engine.config import RunConfig, option_of, pydantic_field
from ...engine.errors import TaskError
from ...engine.model_specs import BuiltinSpec, ModelSpec, OpenAISpec, Role, configured, specified_by
from ...engine.named_models import NO_ENDPOINT
from ...engine.native_specs import NativeSpec
from ...engine.sandbox import SandboxConfig
from ...engine.supervisor.prompts import Prompts
from ...engine.taskfile import TaskLimits, read_as
from ...engine.trust import Environment
from .records import STRATEGY_NAMES, Strategy

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)

# Settings that may change when an experiment is resumed: they change no result.
FREE = frozenset({"concurrency", "executor", "ray_address"})

_JUDGE = "Qwen/Qwen3-235B-A22B-Instruct-2507-tput"
_JUDGE_AT_OPENAI = "gpt-4.1"
_JUDGE_TOKENS = 1024

# Packages that answers, scores or token counts depend on.
_DEPENDENCIES = (
    "bm25s", "datasets", "genai-prices", "msgspec", "openai", "pydantic", "pyzmq", "ray", "tokenizers",
    "vllm",
)  # fmt: skip

_SECRET = re.compile(r"auth|key|token|secret|cookie|password", re.IGNORECASE)


class ExperimentConfig(BaseModel):
    """The settings of an experiment. Paths are relative to the working directory."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, title="supdist-engine experiment")

    task: str = Field(default="qasper", min_length=1, description="the task's name")
    task_options: dict[str, JsonValue] = Field(
        default_factory=dict[str, JsonValue], description="the task's own options"
    )
    strategy: Strategy = Field(
        default="supervisor", validation_alias=STRATEGY_NAMES, description="how an example is answered"
    )
    supervisor: ModelSpec | None = Field(
        default=None,
        description="the model that writes code, or answers directly; from the environment by default",
    )
    worker: ModelSpec | None = Field(
        default=None, description="the model that the code asks; from the environment by default"
    )
    judge: ModelSpec | Literal["none"] | None = Field(
        default=None, description="the model that judges answers, if the task uses one; none for no judge"
    )
    n: int = Field(default=20, ge=-1, description="number of examples; -1 for all")
    seed: int = Field(default=42, description="seed that selects and orders the examples")
    limits: TaskLimits = Field(default_factory=TaskLimits, description="what one example may take")
    sandbox: SandboxConfig = pydantic_field("sandbox", default_factory=SandboxConfig)
    cache: str = Field(
        default="experiment",
        min_length=1,
        description="where finished answers are kept: experiment (in its folder), off, or a file; "
        "with off, an interrupted example is paid for again",
    )
    # Unlike in a run, true by default: a resumed example needs the answers that it had.
    cache_sampled: bool = pydantic_field("cache_sampled", default=True)
    prompts_dir: str | None = Field(default=None, description=f"a folder with {option_of('prompts').doc}")
    window: int | None = Field(
        default=None,
        ge=256,
        description="direct: tokens of the prompt and its answer; the document is cut to fit",
    )
    concurrency: int = Field(default=4, ge=1, le=10_000, description="examples at once")
    executor: Literal["local", "ray"] = Field(default="local", description="where examples run")
    ray_address: str | None = Field(
        default=None,
        description="ray: the cluster's address; by default one is found, or started on this machine",
    )

    @model_validator(mode="after")
    def _without_keys(self) -> ExperimentConfig:
        for role, spec in (("supervisor", self.supervisor), ("worker", self.worker), ("judge", self.judge)):
            if isinstance(spec, OpenAISpec | NativeSpec) and (where := _secret_in(spec)):
                raise ValueError(
                    f"{role}: {where} seems to hold a key, and settings are written to the experiment's "
                    "folder; put the key into a variable, and name that variable in api_key_env"
                )
        return self

    @property
    def models(self) -> tuple[str, str, str]:
        """Names of supervisor, worker and judge; empty for none."""
        # With the direct strategy, the builtin worker answers in place of the builtin supervisor.
        if self.strategy == "direct" and isinstance(self.supervisor, BuiltinSpec):
            supervisor = "builtin-worker"
        else:
            supervisor = _name("supervisor", self.supervisor)
        judge = None if self.judge == "none" else self.judge
        return supervisor, _name("worker", self.worker), _name("judge", judge)

    def run_config(self) -> RunConfig:
        """Return the options of a run, without log folder and cache file.

        Raises:
            TaskError: the prompts cannot be read.
        """
        return RunConfig.from_mapping(
            {
                **dict(self.limits),
                "sandbox": self.sandbox,
                "cache": "off" if self.cache == "off" else "run",
                "cache_sampled": self.cache_sampled,
                # A resumed example must reach its limits where the interrupted one did.
                "cache_counts": True,
                "prompts": Prompts.from_directory(self.prompts_dir) if self.prompts_dir else None,
            }
        )


class Provenance(BaseModel):
    """Facts about an experiment besides its settings."""

    model_config = _STRICT

    version: str = Field(description="version of this package")
    python: str
    platform: str
    dependencies: dict[str, str] = Field(description="versions of packages that results depend on")
    data_hash: str = Field(description="hash of the task's data")
    sample: list[str] = Field(description="ids of the examples, in order")
    command: list[str] = Field(description="the command line")
    started: str = Field(description="time of the start, ISO 8601, UTC")


class Manifest(ExperimentConfig):
    """The content of config.json: resolved settings and provenance."""

    provenance: Provenance

    @classmethod
    def of(cls, config: ExperimentConfig, provenance: Provenance) -> Manifest:
        """Join settings and provenance."""
        return cls(**dict(config), provenance=provenance)

    def settings(self) -> ExperimentConfig:
        """Return the settings alone."""
        return ExperimentConfig(**{name: getattr(self, name) for name in ExperimentConfig.model_fields})


def read_config(path: Path) -> ExperimentConfig:
    """Read the settings of a TOML or JSON file.

    Raises:
        TaskError: the file is wrong; every mistake has a line.
    """
    return read_as(ExperimentConfig, path, "experiment")


def resolve(config: ExperimentConfig, environ: Mapping[str, str]) -> ExperimentConfig:
    """Return the settings with all models: the environment's, or else builtin.

    Raises:
        TaskError: the strategy cannot use these models, or the environment is incomplete.
    """
    if config.strategy == "builtin":
        pair = BuiltinSpec(handler="builtin")
        return config.model_copy(
            update={"supervisor": pair, "worker": pair, "judge": _judge(config, environ)}
        )
    supervisor = config.supervisor or _model("supervisor", environ)
    if config.strategy == "no-worker" and isinstance(supervisor, BuiltinSpec):
        raise TaskError(
            "strategy no-worker: the builtin supervisor cannot work without a worker; "
            "set TOGETHER_API_KEY, OPENAI_API_KEY or BASE_URL, or name a model in a --config"
        )
    worker = (config.worker or _model("worker", environ)) if config.strategy == "supervisor" else None
    found: dict[str, Any] = {"supervisor": supervisor, "worker": worker, "judge": _judge(config, environ)}
    return config.model_copy(update=found)


def provenance(data_hash: str, sample: Sequence[str], command: Sequence[str]) -> Provenance:
    """Return the provenance of an experiment that starts now."""
    return Provenance(
        version=version("supdist-engine"),
        python=platform.python_version(),
        platform=platform.platform(),
        dependencies={name: found for name in _DEPENDENCIES if (found := _version(name))},
        data_hash=data_hash,
        sample=list(sample),
        command=list(command),
        started=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    )


def differences(before: ExperimentConfig, now: ExperimentConfig) -> list[str]:
    """Return a line for each setting that has changed and must not."""
    old, new = before.model_dump(mode="json"), now.model_dump(mode="json")
    return [
        f"{name}: {old[name]!r} before, {new[name]!r} now"
        for name in ExperimentConfig.model_fields
        if name not in FREE and old[name] != new[name]
    ]


def named_judge(model: str, environ: Mapping[str, str]) -> ModelSpec | Literal["none"]:
    """Return a judge by its name, at the environment's endpoint.

    Raises:
        TaskError: no endpoint is configured.
    """
    if model == "none":
        return "none"
    spec = _judge_at_endpoint(environ, model)
    if spec is None:
        raise TaskError(f"judge {model}: {NO_ENDPOINT}")
    return spec


def _judge(config: ExperimentConfig, environ: Mapping[str, str]) -> ModelSpec | Literal["none"]:
    if config.judge is not None:
        return config.judge
    # Away from OpenAI, the default judge is one of Together's models.
    elsewhere = ("TOGETHER_API_KEY", "BASE_URL", "OPENAI_BASE_URL")
    at_openai = not any(environ.get(name) for name in elsewhere)
    default = _JUDGE_AT_OPENAI if at_openai else _JUDGE
    return _judge_at_endpoint(environ, environ.get("JUDGE_MODEL") or default) or "none"


def _judge_at_endpoint(environ: Mapping[str, str], model: str) -> OpenAISpec | None:
    known = environ if isinstance(environ, Environment) else Environment(environ)
    spec = specified_by(known.with_value("SUPERVISOR_MODEL", model), "supervisor")
    # Without sampling, so that a verdict can be repeated.
    return spec and spec.model_copy(update={"temperature": 0.0, "max_tokens": _JUDGE_TOKENS})


def _model(role: Role, environ: Mapping[str, str]) -> ModelSpec:
    return configured(environ, role) or BuiltinSpec(handler="builtin")


def _name(role: str, spec: ModelSpec | None) -> str:
    match spec:
        case None:
            return ""
        case BuiltinSpec():
            return f"builtin-{role}"
        case _:
            return str(getattr(spec, "model", None) or f"broker {getattr(spec, 'address', '')}")


def _secret_in(spec: OpenAISpec | NativeSpec) -> str | None:
    # Only what looks like a key: the name of a header, a password or a query in a URL.
    for name in (spec.extra_headers if isinstance(spec, OpenAISpec) else None) or {}:
        if _SECRET.search(name):
            return f"extra_headers.{name}"
    urls = [spec.base_url] if isinstance(spec.base_url, str) else spec.base_url or []
    if any("@" in urlsplit(url).netloc or _SECRET.search(urlsplit(url).query) for url in urls):
        return "base_url"
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
