"""Keep the old name of ``model_specs`` for one release."""

from __future__ import annotations

import warnings

from .model_specs import *  # noqa: F403 - every name that was there

warnings.warn("supdist.engine.models is now supdist.engine.model_specs", DeprecationWarning, stacklevel=2)
