"""Choose the models of a command: by its flags, a model server, a file, or the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ...handlers import ModelHandler
from ..errors import TaskError
from ..model_specs import ModelSpec, Role, builtin, configured, model_named
from ..named_models import check_names, named_model
from ..trust import Bound, Environment
from .run_flags import RunFlags

_ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Models:
    """The specifications of a run's models, and the model server.

    Attributes:
        specs: by role; a missing role has the builtin model.
        typed: the roles that flags name.
        server: the address of a model server, which serves the roles that no flag names.
    """

    specs: Mapping[Role, ModelSpec]
    typed: frozenset[Role]
    server: str | None = None
    curve_keys: Path | None = None

    @classmethod
    def of(
        cls,
        flags: RunFlags,
        environment: Environment,
        supervisor: ModelSpec | None = None,
        worker: ModelSpec | None = None,
    ) -> Models:
        """Choose: a flag, else the given specification, the environment, the flag of the other role.

        Raises:
            TaskError: a flag is wrong.
        """
        if flags.curve_keys is not None and flags.broker is None:
            raise TaskError("--curve-keys is for a model server: name it with --broker")
        found: dict[Role, ModelSpec] = {}
        typed: dict[Role, ModelSpec] = {}
        given: tuple[tuple[Role, ModelSpec | None, str | None, str | None], ...] = (
            ("supervisor", supervisor, flags.supervisor, flags.supervisor_model),
            ("worker", worker, flags.worker, flags.worker_model),
        )
        for role, before, name, at_endpoint in given:
            if (spec := _typed(role, name, at_endpoint, environment, before)) is not None:
                typed[role] = spec
        for role, before, _, _ in given:
            spec = (
                typed.get(role) or before or configured(environment, role) or next(iter(typed.values()), None)
            )
            if spec is not None:
                found[role] = spec
        return cls(found, frozenset(typed), flags.broker, flags.curve_keys)

    async def handlers(self, folder: Path, worker_ctx_k: int, permissions: Bound) -> dict[Role, ModelHandler]:
        """Return the handlers, not open yet, but connected to the model server.

        Raises:
            TaskError: a specification is wrong or not permitted.
        """
        served: Mapping[str, ModelHandler] = {}
        if self.server is not None:
            # Imports ZeroMQ.
            from ..service import handlers_at

            served = await handlers_at(self.server, curve_keys=self.curve_keys)
        return {
            role: served[role]
            if role in served and role not in self.typed
            else self._build(role, folder, worker_ctx_k, permissions)
            for role in _ROLES
        }

    def local_handlers(self, folder: Path, worker_ctx_k: int, permissions: Bound) -> dict[Role, ModelHandler]:
        """Return the handlers without those of the model server, which is not asked.

        Raises:
            TaskError: a specification is wrong or not permitted.
        """
        return {
            role: self._build(role, folder, worker_ctx_k, permissions)
            for role in _ROLES
            if self.server is None or role in self.specs
        }

    def _build(self, role: Role, folder: Path, worker_ctx_k: int, permissions: Bound) -> ModelHandler:
        spec = self.specs.get(role)
        if spec is None:
            return builtin(role, worker_ctx_k)
        return spec.build(role, folder, worker_ctx_k, permissions)

    def is_missing(self, handlers: Mapping[Role, ModelHandler]) -> bool:
        """Return whether the builtin model stands in for one that nobody named."""
        from ...handlers import BuiltinSupervisor, BuiltinWorker

        unnamed = [handler for role, handler in handlers.items() if role not in self.specs]
        return any(isinstance(handler, BuiltinSupervisor | BuiltinWorker) for handler in unnamed)


def _typed(
    role: Role, name: str | None, at_endpoint: str | None, environment: Environment, before: ModelSpec | None
) -> ModelSpec | None:
    check_names(role, name, at_endpoint)
    if at_endpoint is not None:
        return named_model(role, at_endpoint, environment, before)
    try:
        return None if name is None else model_named(name)
    except TaskError as error:
        raise TaskError(f"--{role}: {error}") from error
