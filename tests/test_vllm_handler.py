"""What can be said of VLLMHandler without vLLM; with it, see ``tools``."""

from __future__ import annotations

import importlib.util

import pytest
from supdist.handlers import Rejected, VLLMHandler

pytestmark = pytest.mark.anyio


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
async def test_without_vllm_the_remedy_is_named() -> None:
    with pytest.raises(Rejected, match=r"pip install 'supdist-engine\[vllm\]'"):
        await VLLMHandler("some/model").chat([{"role": "user", "content": "x"}])


def test_making_one_loads_nothing() -> None:
    assert VLLMHandler("some/model", engine_args={"enforce_eager": True}).model == "some/model"
