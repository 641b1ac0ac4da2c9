"""The old name of ``testing.fake_openai``, for one release."""

from __future__ import annotations

import warnings

from .testing.fake_openai import FakeOpenAI, Shape, Stream, main, read_replies

__all__ = ["FakeOpenAI", "Shape", "Stream", "main", "read_replies"]

warnings.warn(
    "supdist.tools.fake_openai is now supdist.tools.testing.fake_openai", DeprecationWarning, stacklevel=2
)

if __name__ == "__main__":
    main()
