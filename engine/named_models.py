"""Models that a person names for a role: by a short name, or by the name at the configured endpoint."""

from __future__ import annotations

from .errors import TaskError
from .model_presets import BUILTIN
from .model_specs import BuiltinSpec, ModelSpec, Role, configured
from .trust import Environment

NO_ENDPOINT = "no endpoint is configured; set TOGETHER_API_KEY, OPENAI_API_KEY or BASE_URL"


def named_model(
    role: Role, model: str, environment: Environment, before: ModelSpec | None = None
) -> ModelSpec:
    """Return a model by its name, at ``before``'s endpoint, or else the environment's.

    Raises:
        TaskError: no endpoint is configured.
    """
    if model == BUILTIN:
        return BuiltinSpec(handler="builtin")
    if before is not None and hasattr(before, "model"):
        return before.model_copy(update={"model": model})
    spec = configured(environment.with_value(f"{role.upper()}_MODEL", model), role)
    if spec is None:
        raise TaskError(f"{role} {model}: {NO_ENDPOINT}, or use `builtin` or PRESET/MODEL")
    return spec


def check_names(role: str, name: object, at_endpoint: object) -> None:
    """Check that one flag names a model.

    Raises:
        TaskError: two do.
    """
    if name is not None and at_endpoint is not None:
        raise TaskError(f"--{role} and --{role}-model name one model: give one of them")
