"""The old name of ``testing.fake_openai``, for one release."""

from __future__ import annotations

import warnings

from .testing.fake_openai import *  # noqa: F403 - every name that was there
from .testing.fake_openai import main

warnings.warn(
    "supdist.tools.fake_openai is now supdist.tools.testing.fake_openai", DeprecationWarning, stacklevel=2
)

if __name__ == "__main__":
    main()
