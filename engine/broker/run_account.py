"""What a run and the runs inside it spend. README of engine/supervisor: "A run inside a run"."""

from __future__ import annotations

import contextvars
from collections.abc import Generator
from contextlib import contextmanager

from ..errors import TaskError
from .budget import Budget, BudgetLimits
from .inner_calls import InnerCalls
from .worker_health import WorkerHealth

# Each level has a sandbox and a supervisor of its own. Code that calls a tool which starts a run could go on
# without end.
_MOST_NESTED = 8


class RunAccount:
    """The budget of a run, and what the runs inside it spend.

    Attributes:
        budget: its own limits and those of the outer runs.
        outer: the run whose host tool started this one.
    """

    def __init__(self, run_id: str, budget: Budget | None = None, outer: RunAccount | None = None) -> None:
        self.run_id = run_id
        self.budget = budget or Budget()
        self.outer = outer
        self.supervisor: InnerCalls = InnerCalls(None if outer is None else outer.supervisor)
        self.worker: InnerCalls = InnerCalls(None if outer is None else outer.worker)
        self.health: WorkerHealth = WorkerHealth(None if outer is None else outer.health)

    @classmethod
    def open(cls, run_id: str, limits: BudgetLimits, outer: RunAccount | None) -> RunAccount:
        """Return the account of a run.

        Raises:
            TaskError: too many runs are inside each other.
        """
        depth, each = 1, outer
        while each is not None:
            depth, each = depth + 1, each.outer
        if depth > _MOST_NESTED:
            raise TaskError(
                f"{depth} runs inside each other; at most {_MOST_NESTED} are allowed: "
                "a host tool starts a run whose code calls the tool again"
            )
        return cls(run_id, Budget(limits, outer=None if outer is None else outer.budget), outer)

    def tool_context(self) -> contextvars.Context:
        """Return a copy of the current context, in which this run is the outer one."""
        context = contextvars.copy_context()
        context.run(_outer.set, self)
        return context


_outer: contextvars.ContextVar[RunAccount | None] = contextvars.ContextVar("supdist outer run", default=None)


@contextmanager
def outer_run() -> Generator[RunAccount | None]:
    """Yield the run whose host tool calls this, if it has not ended. Inside there is no outer run."""
    account = _outer.get()
    # Else the queues of handlers and ``on_event`` would keep it, and serve other runs with it.
    token = _outer.set(None)
    try:
        yield None if account is None or account.budget.is_closed else account
    finally:
        _outer.reset(token)
