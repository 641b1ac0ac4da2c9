"""Find the interpreter that sandboxes run, and give it a place in their root."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

# An interpreter under /home or in a virtual environment appears here. So no traceback and no /proc/self/maps
# names a path of the host.
FOLDER = "/opt/python"
# A name for libpython that is shorter than its own.
LIBRARY = "/opt/libpython.so"


class Interpreter(NamedTuple):
    """The interpreter's place in the root, and what is bound and copied for it.

    Attributes:
        library: the place of its shared library; empty if it has none.
    """

    executable: str
    binds: list[list[str]]
    copies: list[list[str]]
    library: str


def find() -> Interpreter:
    """Find the engine's own interpreter on the host."""
    source = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    if sys.base_prefix == "/usr":
        return Interpreter(source, [], [], "")
    executable = f"{FOLDER}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    binds = [[os.path.join(sys.base_prefix, "lib"), f"{FOLDER}/lib"]]
    if sys.platlibdir != "lib":
        binds.append([os.path.join(sys.base_prefix, sys.platlibdir), f"{FOLDER}/{sys.platlibdir}"])
    copies = [[source, executable]]
    library = ""
    if loaded := _loaded_library():
        library = _place_in(binds, loaded)
        if not library:
            library = f"{FOLDER}/bin/{sysconfig.get_config_var('INSTSONAME')}"
            copies.append([loaded, library])
    return Interpreter(executable, binds, copies, library)


def _place_in(binds: list[list[str]], path: str) -> str:
    for source, target in binds:
        inside = f"{os.path.realpath(source)}/"
        if path.startswith(inside):
            return f"{target}/{path.removeprefix(inside)}"
    return ""


def _loaded_library() -> str | None:
    # The one that this process uses: RUNPATH, LD_LIBRARY_PATH or ld.so.cache led to it.
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return None
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if os.path.basename(path).startswith("libpython3.") and ".so" in path:
            return path
    return None


def copy(source: str, target: str, library: str) -> None:
    """Copy the executable; it then loads ``library`` by its path."""
    if not library:
        shutil.copyfile(source, target)
        return
    # The path that it was built with is not there, so it would find no library, or another version. A name
    # with a slash is a path (ld.so(8)), and a child without any variable finds it too.
    name = os.path.basename(library).encode()
    new = LIBRARY.encode().ljust(len(name), b"\0")
    Path(target).write_bytes(Path(source).read_bytes().replace(b"\0" + name + b"\0", b"\0" + new + b"\0"))
