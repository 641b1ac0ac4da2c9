"""The old name of ``model_specs``, for one release."""

from __future__ import annotations

import warnings

from .model_specs import from_environment

__all__ = ["from_environment"]

warnings.warn("supdist.engine.models is now supdist.engine.model_specs", DeprecationWarning, stacklevel=2)
