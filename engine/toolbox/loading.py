"""Import the tools that a task file names."""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
from dataclasses import dataclass
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from types import CodeType

from ..errors import TaskError
from .toolbox import Tool


def load_tool(name: str, place: str, folder: Path) -> Tool:
    """Import the tool at ``module:attribute``.

    Raises:
        TaskError: there is no such tool, or another module of that name is imported already.
    """
    module_name, _, attribute = place.partition(":")
    # Trust covers the sources of a folder, not its caches.
    if "__pycache__" in module_name.split("."):
        raise TaskError(f"tools.{name}: {module_name} is in a cache of Python's; name the module itself")
    here = str(folder.resolve())
    _add_to_path(here)
    try:
        module = importlib.import_module(module_name)
    # The module is the user's code, and may raise anything.
    except Exception as error:
        raise TaskError(
            f"tools.{name}: cannot import {module_name}: {type(error).__name__}: {error}"
        ) from error
    _check_origin(name, module_name.partition(".")[0], here)
    value: object = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise TaskError(f"tools.{name}: {module_name} has no {attribute}")
        value = getattr(value, part)
    return value  # type: ignore[return-value]  # pyright: ignore[reportReturnType]  # what is no tool is refused with the others


def _add_to_path(folder: str) -> None:
    # At the end: the folder's modules replace no others.
    if folder not in sys.path:
        sys.path.append(folder)
    hook = _SourceHook(folder)
    if hook not in sys.path_hooks:
        sys.path_hooks.insert(0, hook)
        for path in [path for path in sys.path_importer_cache if _is_below(path, folder)]:
            del sys.path_importer_cache[path]
    importlib.invalidate_caches()


class _SourceLoader(SourceFileLoader):
    """Compiles a module's source at every import."""

    # A file in __pycache__ could hold other code than the source that the user trusted.
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


@dataclass(frozen=True, slots=True)
class _SourceHook:
    """Finds modules in a folder and below it, for ``sys.path_hooks``."""

    folder: str

    def __call__(self, path: str) -> FileFinder:
        if not _is_below(path, self.folder):
            raise ImportError(path)
        return FileFinder(
            path,
            (ExtensionFileLoader, EXTENSION_SUFFIXES),
            (_SourceLoader, SOURCE_SUFFIXES),
            (SourcelessFileLoader, BYTECODE_SUFFIXES),
        )


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _check_origin(name: str, top: str, folder: str) -> None:
    beside = importlib.machinery.PathFinder.find_spec(top, [folder])
    # Without an origin it is a folder without __init__.py, and any other module goes first.
    if beside is None or beside.origin is None:
        return
    taken = getattr(sys.modules[top], "__file__", None)
    if taken is None or not os.path.samefile(beside.origin, taken):
        raise TaskError(
            f"tools.{name}: {top} beside the task file has the name of another module, "
            f"{taken or 'of Python itself'}; rename it"
        )
