"""The limits of a run as one value."""

from __future__ import annotations

from .broker.budget import BudgetLimits
from .config import RunConfig, options, pydantic_field


class RunLimits(BudgetLimits):
    """Limits of a run, besides its turns. After one, the supervisor is asked for its best answer."""

    max_worker_calls: int | None = pydantic_field("max_worker_calls")
    max_tokens: int | None = pydantic_field("max_tokens")
    max_cost_usd: float | None = pydantic_field("max_cost_usd")
    max_seconds: float | None = pydantic_field("max_seconds")
    call_seconds: float | None = pydantic_field("call_seconds")
    final_seconds: float = pydantic_field("final_seconds")

    @classmethod
    def of(cls, config: RunConfig) -> RunLimits:
        """Return the limits of a run."""
        return cls(**{name: getattr(config, name) for name in RunLimits.model_fields})

    @classmethod
    def place_of(cls, name: str) -> str:
        """See ``Options.place_of``."""
        return f"{name} is an option of run() itself: run({name}=...)" if name in options() else ""

    def given(self) -> dict[str, object]:
        """Return the limits that the constructor got."""
        # Only those: a limit that was not given must not clash with a keyword.
        return {name: getattr(self, name) for name in RunLimits.model_fields if name in self.model_fields_set}
