"""Say why a cell ended, and what its caller can do."""

from __future__ import annotations

from ...sandbox_image.protocol import CellEnd, Outcome
from .config import CellResult

_RESET = "; its variables are lost: call reset()"
_STOPPED = (Outcome.TIMEOUT, Outcome.OUTPUT_LIMIT)


def detail_of(end: CellEnd, output_bytes: int) -> str:
    """Return ``CellResult.detail``.

    Args:
        output_bytes: the limit of the cell's output.
    """
    detail = end.detail
    if end.outcome == Outcome.OUTPUT_LIMIT:
        limit = f"more than {output_bytes} bytes of output"
        if not end.state_lost:
            return f"{limit}: print less, or raise SandboxConfig(output=...); the variables are kept"
        detail = f"{limit}; {detail}"
    return f"{detail}{_RESET}" if end.state_lost and end.outcome in _STOPPED else detail


def reason_of(result: CellResult) -> str:
    """Return the detail for a reader who has no ``reset()`` to call."""
    return result.detail.removesuffix(_RESET)
