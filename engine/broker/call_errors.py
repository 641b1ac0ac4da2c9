"""Errors of model calls: their kinds for the result, words for guest code, advice for the user."""

from __future__ import annotations

from ...handlers import Completion, ContextTooLong, HandlerError, NoAccess, Unavailable, Unreachable
from ..result import FailedCall
from ..sandbox import CallError
from .budget import BudgetExceeded
from .handler_queue import CallTimeout

_REFUSED = CallError("refused", "the worker refused to answer")
_TOOL_CALL = CallError("refused", "the worker called a tool and wrote no text; there are no tools here")


def result_of(answer: Completion, max_tokens: int | None) -> str | CallError:
    """Return what guest code gets for an answer."""
    if answer.finish_reason == "refusal":
        return _REFUSED
    if answer.finish_reason == "tool_call" and not answer.text.strip():
        return _TOOL_CALL
    if answer.finish_reason == "length" and not answer.text.strip():
        limit = f"max_tokens {max_tokens:,}" if max_tokens else f"{answer.usage.output_tokens:,} tokens"
        what = "the worker's answer was cut at {}, before it had any text; ask for less in one prompt"
        return CallError("cut_off", what.format(limit))
    return answer.text


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


def failure_kind(error: Exception | None, told: CallError | None = None) -> FailedCall:
    """Return the kind of a failure. Without an error the model has replied, and ``told`` says how."""
    match error:
        case None:
            return "cut_off" if told is not None and told.code == "cut_off" else "refusal"
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
