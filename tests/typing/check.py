"""Check that mypy, pyright and jedi see an installed supdist-engine.

Usage: ``python tests/typing/check.py PYTHON``. PYTHON is the interpreter of an environment in which the
package is installed, from a wheel or editable. The tools are those of the interpreter that runs this program.
"""

# ruff: noqa: T201 - a program reports to its user

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

jedi: Any = importlib.import_module("jedi")  # it has no types

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md")

DECLARATIONS = {
    "long_document_text": 'long_document_text = "a text"',
    "my_client": "import typing\nmy_client: typing.Any = None",
}
"""Declarations of names that a block of a document uses or leaves without a type."""

WRONG_PROGRAM = """\
from supdist.engine import Outcome, RunConfig, SandboxConfig, SyncSandbox, arun, run
from supdist.engine import no_such_name  # wrong
SandboxConfig(memory=1.5)  # wrong
SandboxConfig(memroy="1MiB")  # wrong
SandboxConfig(memory="1MiB", scratch=1 << 20)
with SyncSandbox() as sandbox:
    sandbox.execute(1)  # wrong
    sandbox.execute("1").no_such_field  # wrong
    sandbox.execute("1").outcome == Outcome.NO_SUCH_OUTCOME  # wrong
from supdist.handlers import ScriptedHandler
model = ScriptedHandler(["x"])
run(query="q", context="c", supervisor=4, worker=model)  # wrong
run(query="q", context="c", supervisor=model, worker=model, max_iterations="5")  # wrong
run(query="q", context="c", supervisor=model, worker=model, cache_sampled="yes")  # wrong
run(query="q", context="c", supervisor=model, worker=model, cash="off")  # wrong
run(query="q", context="c", supervisor=model, worker=model, config={})  # wrong
arun(query="q", context="c", supervisor=model, worker=model, max_tokens="5")  # wrong
RunConfig(max_tokens="5")  # wrong
RunConfig(max_token=5)  # wrong
"""

FACTS = """\
import json, supdist.engine as engine
print(json.dumps([engine.__file__, engine.__version__, engine.__all__, dir(engine)]))
"""


class Failed(Exception):
    """A check failed; the message is the tool's own output."""


class Installation:
    """An interpreter with the package, and a scratch folder outside of any checkout."""

    def __init__(self, python: str, folder: Path) -> None:
        self.python = python
        self.folder = folder
        self.environment = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")
        }
        facts = json.loads(self.output([python, "-c", FACTS]))
        self.file, self.version, self.names, self.listed = facts

    def output(self, command: Sequence[str]) -> str:
        """Run a command in the scratch folder and return its output.

        Raises:
            Failed: it exits with an error.
        """
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise Failed(done.stdout + done.stderr)
        return done.stdout

    def mypy(self, files: Sequence[Path]) -> str:
        """Check files with ``mypy --strict``."""
        command = [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--config-file=",
            "--python-executable",
            self.python,
        ]
        return self.output([*command, *map(str, files)])

    def pyright(self, files: Sequence[Path], mode: str = "standard") -> str:
        """Check files with pyright in a mode: ``standard`` or ``strict``."""
        settings = {
            "typeCheckingMode": mode,
            "include": [str(file.relative_to(self.folder)) for file in files],
        }
        project = self.folder / "pyrightconfig.json"
        project.write_text(json.dumps(settings), encoding="utf-8")
        command = [sys.executable, "-m", "pyright", "--project", str(project), "--pythonpath", self.python]
        return self.output(command)

    def edit(self, code: str) -> Any:
        """Return a jedi script whose cursor is at the end of ``code``."""
        environment = jedi.create_environment(self.python, safe=False)
        project = jedi.Project(self.folder)
        return jedi.Script(code, path=self.folder / "edited.py", environment=environment, project=project)

    def write(self, name: str, text: str) -> Path:
        """Write a program into the scratch folder and return its path."""
        file = self.folder / name
        file.write_text(text, encoding="utf-8")
        return file


def require(condition: object, message: object) -> None:
    """Raise ``Failed`` unless the condition holds."""
    if not condition:
        raise Failed(str(message))


def document_programs() -> dict[str, str]:
    """Return the Python blocks of the documents by file name, each with the declarations that it lacks."""
    programs: dict[str, str] = {}
    for document in DOCUMENTS:
        blocks = re.findall(
            r"```python\n(.*?)```", (REPOSITORY / document).read_text(encoding="utf-8"), re.DOTALL
        )
        require(blocks, f"{document} holds no Python block")
        for number, block in enumerate(blocks, 1):
            programs[f"{Path(document).stem.lower()}_{number}.py"] = declarations(block) + block
    return programs


def declarations(block: str) -> str:
    """Return the declarations that a block needs: it uses the name and does not give it a type itself."""
    lines = [
        text
        for name, text in DECLARATIONS.items()
        if re.search(rf"\b{name}\b", block) and not re.search(rf"^{name}:", block, re.MULTILINE)
    ]
    return "".join(line + "\n" for line in lines)


def check_run_time(installed: Installation) -> None:
    """Compare ``dir(supdist.engine)`` with the public names."""
    require(installed.version, "supdist.engine.__version__ is empty")
    require(installed.listed == sorted([*installed.names, "__version__"]), f"dir() is {installed.listed}")


def check_wrong_program(installed: Installation, check: Callable[[Sequence[Path]], str]) -> None:
    """Expect an error in each line marked ``# wrong``, and in no other."""
    file = installed.write("wrong.py", WRONG_PROGRAM)
    try:
        output = check([file])
    except Failed as failure:
        output = str(failure)
    lines = WRONG_PROGRAM.splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    found = {int(number) for number in re.findall(r"wrong\.py:(\d+)(?::\d+ -|:) error", output)}
    require(found == marked, f"errors in lines {sorted(found)}, expected in {sorted(marked)}:\n{output}")


def check_completion(installed: Installation, code: str, expected: Sequence[str]) -> None:
    """Expect names among jedi's completions at the end of a program."""
    completed = {completion.name for completion in installed.edit(code).complete()}
    missing = sorted(set(expected) - completed)
    require(not missing, f"jedi does not complete {missing} after:\n{code}\nbut {sorted(completed)}")


def check_signature(installed: Installation, name: str, expected: Sequence[str]) -> None:
    """Expect parameters in the signature that jedi shows at a call."""
    signatures = installed.edit(f"from supdist.engine import {name}\n{name}(").get_signatures()
    shown = [[parameter.name for parameter in signature.params] for signature in signatures]
    require(len(shown) == 1 and set(expected) <= set(shown[0]), f"jedi shows for {name}( {shown}")


def check_definition(installed: Installation, name: str) -> None:
    """Expect a definition in a file of the package, with a docstring."""
    code = f"from supdist.engine import {name}\n{name}"
    definitions = installed.edit(code).goto(2, 1, follow_imports=True)
    require(len(definitions) == 1, f"jedi finds for {name}: {definitions}")
    path, text = definitions[0].module_path, definitions[0].docstring(raw=True)
    package = Path(installed.file).resolve().parent
    require(path and path.is_file(), f"jedi finds {name} in {path}, which is no file")
    require(path.resolve().is_relative_to(package), f"jedi finds {name} in {path}, outside of {package}")
    require(text.strip(), f"jedi finds no docstring of {name} in {path}")


def checks(installed: Installation) -> dict[str, Callable[[], object]]:
    """Return all checks by what they print."""
    user_program = (HERE / "user_program.py").read_text(encoding="utf-8")
    user = [installed.write("user_program.py", user_program)]
    documents = [installed.write(name, text) for name, text in document_programs().items()]
    names = ", ".join(file.name for file in documents)
    sandbox = "from supdist.engine import SyncSandbox\n"
    return {
        "python: dir(supdist.engine), __version__": lambda: check_run_time(installed),
        "mypy, strict: user_program.py": lambda: installed.mypy(user),
        f"mypy, strict: {names}": lambda: installed.mypy(documents),
        "mypy: wrong names and types are errors": lambda: check_wrong_program(installed, installed.mypy),
        "pyright, strict: user_program.py": lambda: installed.pyright(user, "strict"),
        f"pyright, standard: {names}": lambda: installed.pyright(documents),
        "pyright: wrong names and types are errors": lambda: check_wrong_program(
            installed, installed.pyright
        ),
        "jedi: completes the public names": lambda: check_completion(
            installed, "from supdist.engine import ", installed.names
        ),
        "jedi: completes SyncSandbox().execute": lambda: check_completion(
            installed,
            sandbox + "SyncSandbox().",
            ["execute", "interrupt", "put", "get", "list", "reset", "isolation"],
        ),
        "jedi: completes fields of a CellResult": lambda: check_completion(
            installed,
            sandbox + "with SyncSandbox() as sandbox:\n    sandbox.execute('1').",
            ["outcome", "stdout", "error"],
        ),
        "jedi: shows the parameters of SandboxConfig": lambda: check_signature(
            installed, "SandboxConfig", ["memory", "timeout", "backend"]
        ),
        "jedi: shows the parameters of run": lambda: check_signature(
            installed, "run", ["query", "context", "supervisor", "worker", "tools"]
        ),
        "jedi: finds run and its docstring": lambda: check_definition(installed, "run"),
        "jedi: finds SandboxConfig and its docstring": lambda: check_definition(installed, "SandboxConfig"),
    }


def main(python: str) -> int:
    """Run all checks and stop at the first that fails."""
    with tempfile.TemporaryDirectory() as folder:
        name = "python: import supdist.engine"
        try:
            # Not resolved: the link in a virtual environment leads to an interpreter without its packages.
            installed = Installation(str(Path(python).absolute()), Path(folder).resolve())
            print(f"ok      {name} {installed.version} from {installed.file}")
            for name, check in checks(installed).items():
                start = time.monotonic()
                check()
                print(f"ok {time.monotonic() - start:4.1f} s  {name}", flush=True)
        except Failed as failure:
            print(f"FAILED     {name}\n{failure}")
            return 1
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
