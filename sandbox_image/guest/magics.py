"""Run the IPython commands of a cell: ``notebook`` makes calls of them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from typing import Any, TextIO

from ..commands.pip import MESSAGE
from .magic_names import CELL
from .timing import Timing, in_unit, profile, time_often

_INSTALLS = re.compile(
    r"\s*(?:sudo\s+)?(?:(?:\S*/)?python[\d.]*\s+-m\s+)?(?:pip[\d.]*|uv|conda|mamba|apt|apt-get)(?:\s|$)"
)
_VARIABLE = re.compile(r"\$\$|\$(\w+)|\{([^{}\n]+)\}")
_MIME = {"html": "text/html", "svg": "image/svg+xml"}


class Magics:
    """The commands, for cells in one namespace."""

    def __init__(self, namespace: dict[str, Any], display: Callable[..., None]) -> None:
        self._namespace = namespace
        self._display = display
        self._started = (0.0, 0.0)
        self._captured: Captured | None = None

    def shell(self, command: str) -> None:
        """Run a shell command; its output is the cell's."""
        self._namespace["_exit_code"] = subprocess.call(self._expand(command), shell=True)  # noqa: S602 - the cell wrote it

    def shell_lines(self, command: str) -> list[str]:
        """Run a shell command; return the lines that it prints."""
        done = subprocess.run(self._expand(command), shell=True, stdout=subprocess.PIPE, check=False)  # noqa: S602 - the cell wrote it
        self._namespace["_exit_code"] = done.returncode
        return done.stdout.decode(errors="replace").splitlines()

    def _expand(self, command: str) -> str:
        if _INSTALLS.match(command):
            raise ModuleNotFoundError(MESSAGE)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()

        def value(match: re.Match[str]) -> str:
            if match[0] == "$$":
                return "$"
            try:
                found = self._namespace[match[1]] if match[1] else eval(match[2], self._namespace)  # noqa: S307 - the cell wrote it
            except Exception:
                return match[0]  # a variable of the shell
            return str(found)

        return _VARIABLE.sub(value, command)

    def install(self, arguments: str) -> None:
        """Say how packages come in."""
        raise ModuleNotFoundError(MESSAGE)

    def run(self, arguments: str) -> None:
        """Run a file of Python in the cells' namespace."""
        path = arguments.split(maxsplit=1)[0] if arguments else ""
        with open(path, "rb") as file:
            code = compile(file.read(), path, "exec", dont_inherit=True)
        exec(code, self._namespace)  # noqa: S102 - the cell named it

    def script(self, name: str, arguments: str, body: str) -> None:
        """Run a script by its interpreter; it fails as IPython's does."""
        words = arguments.split() if name == "script" else [name, *arguments.split()]
        command = [sys.executable if words[:1] in (["python"], ["python3"]) else words[0], *words[1:]]
        if name == "system":
            command = ["sh", *words[1:]]
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        subprocess.run(command, input=body.encode(), check=True)

    def cd(self, path: str) -> None:
        """Change the folder, and print it."""
        os.chdir(os.path.expanduser(path.strip("'\"") or "~"))
        _print(os.getcwd())

    def pwd(self, _: str) -> str:
        """Return the folder."""
        return os.getcwd()

    def env(self, arguments: str) -> object:
        """Return a variable of the environment or all, or set one."""
        name, sign, value = re.split(r"(=|\s+|$)", arguments, maxsplit=1)
        if not name:
            return dict(os.environ)
        if not sign:
            return os.environ.get(name)
        os.environ[name] = value
        _print(f"env: {name}={value}")
        return None

    def who_ls(self, _: str) -> list[str]:
        """Return the names that cells have set."""
        hidden = self._namespace.get("__builtins__")
        return sorted(
            name for name, value in self._namespace.items() if name[0] != "_" and value is not hidden
        )

    def who(self, _: str) -> None:
        """Print the names that cells have set."""
        _print("\t".join(self.who_ls("")))

    def start(self) -> None:
        """Start the clock of ``%time``."""
        self._started = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Print what passed since ``start``."""
        wall, processor = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
        _print(f"CPU times: total: {in_unit(processor)}\nWall time: {in_unit(wall)}")

    @contextlib.contextmanager
    def timed(self) -> Generator[None]:
        """Time a statement."""
        self.start()
        yield
        self.stop()

    def timeit(self, arguments: str) -> Timing | None:
        """Time a statement many times."""
        return time_often(arguments, "", self._namespace)

    def timeit_cell(self, _: str, arguments: str, body: str) -> Timing | None:
        """Time a cell many times; the rest of its first line is the setup."""
        return time_often(arguments, body, self._namespace)

    def prun(self, arguments: str) -> None:
        """Profile a statement."""
        profile(arguments, "", self._namespace)

    def prun_cell(self, _: str, arguments: str, body: str) -> None:
        """Profile a cell."""
        profile(arguments, body, self._namespace)

    def capture(self) -> Captured:
        """Keep what the cell prints from now on. The next cell has streams of its own."""
        captured = Captured(sys.stdout, sys.stderr)
        sys.stdout, sys.stderr = captured.out, captured.err
        self._captured = captured
        return captured

    def release(self) -> None:
        """Give the cell its streams again."""
        if self._captured is not None:
            sys.stdout, sys.stderr = self._captured.before

    def writefile(self, _: str, arguments: str, body: str) -> None:
        """Write a cell to a file; ``-a`` appends."""
        *options, path = arguments.split() or [""]
        existed = os.path.exists(path)
        with open(path, "a" if "-a" in options or "--append" in options else "w", encoding="utf-8") as file:
            file.write(body)
        verb = "Appending to" if "-a" in options else "Overwriting" if existed else "Writing"
        _print(f"{verb} {path}")

    def show(self, name: str, _: str, body: str) -> None:
        """Show a cell as HTML or SVG; others as text."""
        assert name in CELL
        form = _MIME.get(name.lower())
        self._display({"text/plain": body, **({form: body} if form else {})}, raw=True)

    def help(self, value: object, *, source: bool) -> None:
        """Print an object's signature and docstring, or its source."""
        import inspect

        lines: list[str] = []
        with contextlib.suppress(TypeError, ValueError):
            name = getattr(value, "__name__", type(value).__name__)
            lines.append(f"Signature: {name}{inspect.signature(value)}")  # type: ignore[arg-type]  # refused by a TypeError
        lines.append(f"Type:      {type(value).__name__}")
        text = inspect.getdoc(value)
        if source:
            with contextlib.suppress(TypeError, OSError):
                text = inspect.getsource(value)  # type: ignore[arg-type]  # refused by a TypeError
        _print("\n".join([*lines, text or "<no docstring>"]))


class Captured:
    """What a cell with ``%%capture`` printed."""

    def __init__(self, stdout: TextIO, stderr: TextIO) -> None:
        self.before = stdout, stderr
        self.out = io.StringIO()
        self.err = io.StringIO()

    @property
    def stdout(self) -> str:
        """What it wrote to stdout."""
        return self.out.getvalue()

    @property
    def stderr(self) -> str:
        """What it wrote to stderr."""
        return self.err.getvalue()

    def show(self) -> None:
        """Print it."""
        sys.stdout.write(self.stdout)
        sys.stderr.write(self.stderr)

    def __str__(self) -> str:
        """Return its stdout."""
        return self.stdout


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
