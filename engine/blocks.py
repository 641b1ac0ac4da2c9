"""Old name of ``supervisor.blocks``, kept for one release."""

from __future__ import annotations

import warnings

from .supervisor.blocks import *  # noqa: F403 - every name that was there

warnings.warn(
    "supdist.engine.blocks is now supdist.engine.supervisor.blocks", DeprecationWarning, stacklevel=2
)
