"""Errors of model calls: their kinds for the result, words for guest code, advice for the user."""

from __future__ import annotations

from ...handlers import ContextTooLong, HandlerError, NoAccess, Unavailable, Unreachable
from ..result import FailedCall
from ..sandbox import CallError
from .budget import BudgetExceeded
from .handler_queue import CallTimeout

REFUSED = CallError("refused", "the worker refused to answer")


def call_error(error: Exception) -> CallError:
    """Return the error that guest code sees."""
    # The error's text stays on the host: it may hold addresses and keys.
    match error:
        case BudgetExceeded():
            return CallError("budget_exceeded", f"the run's {error.limit} is used up")
        case ContextTooLong():
            return CallError("too_long", "the prompt does not fit the worker's window")
        case CallTimeout():
            return CallError("timeout", "the worker did not answer in time")
        case HandlerError() if not isinstance(error, Unavailable):
            return CallError("refused", "the worker's endpoint refused the request")
        case _:
            return CallError("unavailable", "the worker could not be reached, or failed")


def failure_kind(error: Exception | None) -> FailedCall:
    """Return the kind of a failure; None is a refusal of the model."""
    match error:
        case None:
            return "refusal"
        case BudgetExceeded():
            return "budget_exceeded"
        case ContextTooLong():
            return "too_long"
        case NoAccess():
            return "no_access"
        case Unreachable():
            return "unreachable"
        case CallTimeout():
            return "timeout"
        case Unavailable():
            return error.reason or "unavailable"
        case HandlerError():
            return "rejected"
        case _:
            return "handler_error"


def remedy(error: Exception) -> str:
    """Return what the user can do about a model that fails for good; empty if that is not known."""
    match error:
        case NoAccess():
            return "Check its key, its credit and the model's name"
        case Unreachable():
            return "Start it, or correct its address"
        case Unavailable() | CallTimeout():
            return "Try again later, or choose another model"
        case _:
            return ""
