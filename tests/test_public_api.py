from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

import supdist.engine
import supdist.handlers
from supdist.engine import EngineError, arun, run
from supdist.handlers import HandlerError

HEAVY = {"openai", "genai_prices", "docker", "vllm", "ray", "pandas", "numpy", "datasets", "rich", "torch"}


@pytest.mark.parametrize("module", [supdist.engine, supdist.handlers])
def test_every_public_name_is_there(module: object) -> None:
    names: list[str] = getattr(module, "__all__")  # noqa: B009 - a type checker knows no such attribute
    assert names == sorted(names, key=lambda name: (name.islower(), name))
    for name in names:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(module, "no_such_name")  # noqa: B009 - a type checker knows no such attribute


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("from supdist.engine import run, arun, open_sandbox", HEAVY | {"zmq"}),
        ("from supdist.handlers import OpenAIHandler, ScriptedHandler", HEAVY | {"pydantic", "zmq"}),
        ("import supdist.engine.cli", HEAVY | {"pydantic", "zmq", "msgspec", "asyncio", "anyio"}),
        ("import supdist.tools.commands", HEAVY | {"pydantic", "zmq", "msgspec", "asyncio", "anyio"}),
        (
            "import supdist.sandbox_image.guest.init",
            HEAVY | {"zmq", "psutil", "pyseccomp", "pydantic", "asyncio"},
        ),
    ],
)
def test_importing_is_light(statement: str, forbidden: set[str]) -> None:
    code = f"{statement}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not forbidden & set(loaded)


def test_run_is_arun_without_await() -> None:
    assert inspect.signature(arun).parameters.keys() >= {
        "query",
        "context",
        "supervisor",
        "worker",
        "max_iterations",
        "log_dir",
    }
    assert run.__name__ == "run"
    assert run.__doc__ == arun.__doc__
    assert not inspect.iscoroutinefunction(run)


def test_the_error_trees_are_as_drawn() -> None:
    for module, root in (("supdist.engine.errors", EngineError), ("supdist.handlers.errors", HandlerError)):
        source = importlib.import_module(module)
        drawn = source.__doc__ or ""
        for name, value in vars(source).items():
            if inspect.isclass(value) and issubclass(value, Exception):
                assert issubclass(value, root)
                assert name in drawn
