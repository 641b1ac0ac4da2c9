"""Pickle guest tools by value: the pickle holds their code."""

from __future__ import annotations

import importlib
import io
import sys
import threading
import types
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..errors import TaskError

# The position of ``co_filename`` among the arguments of ``types.CodeType``, in CPython 3.11 to 3.14.
_FILENAME = 10
# cloudpickle's list of modules that travel by value belongs to the whole process.
_registry = threading.Lock()


def pickle_tool(name: str, function: Callable[..., object]) -> bytes:
    """Pickle a function with its code, its closure, and what it uses of its module.

    Raises:
        TaskError: something that it refers to cannot be sent.
    """
    # Only the host writes pickles, and only guests read them.
    buffer = io.BytesIO()
    try:
        with _by_value(function):
            _pickler(name)(buffer, protocol=5).dump(function)
    # An object's own __reduce__ may raise anything.
    except Exception as error:
        raise TaskError(
            f"tool {name} cannot be sent into the sandbox: {type(error).__name__}: {error}. "
            "Have it use plain values, or make it a HostTool, which stays in the engine"
        ) from error
    return buffer.getvalue()


def _pickler(name: str) -> Any:
    base: Any = _cloudpickle().Pickler
    known: Any = base.dispatch_table

    def reduce_code(code: types.CodeType) -> Any:
        # cloudpickle 3.1.3 names every code object <dynamic-code>; earlier versions keep the file's path.
        make_code, arguments = known[types.CodeType](code)
        return make_code, (*arguments[:_FILENAME], f"<tool {name}>", *arguments[_FILENAME + 1 :])

    def reduce_module(module: types.ModuleType) -> Any:
        return importlib.import_module, (module.__name__,)

    class Pickler(base):
        dispatch_table: Any = known.new_child({types.CodeType: reduce_code, types.ModuleType: reduce_module})

        def reducer_override(self, obj: Any) -> Any:
            reduced: Any = base.reducer_override(self, obj)
            if isinstance(obj, types.FunctionType) and reduced is not NotImplemented:
                # The first of its globals: cloudpickle notes there where the module lies on the host.
                for key in ("__file__", "__path__"):
                    reduced[1][1].pop(key, None)
            return reduced

    return Pickler


def _cloudpickle() -> Any:
    # Imported here: it is large. By name: it has no types.
    return importlib.import_module("cloudpickle")


@contextmanager
def _by_value(function: Callable[..., object]) -> Generator[None]:
    # The sandbox has the standard library, and not the function's own module.
    cloudpickle, module = _cloudpickle(), sys.modules.get(_module_of(function))
    if module is None or module.__name__.partition(".")[0] in sys.stdlib_module_names:
        yield
        return
    with _registry:
        was_there = module.__name__ in cloudpickle.list_registry_pickle_by_value()
        cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            if not was_there:
                cloudpickle.unregister_pickle_by_value(module)


def _module_of(function: Callable[..., object]) -> str:
    return _module_of(function.func) if isinstance(function, partial) else function.__module__ or ""
