"""What else runs Python code, each as its own documentation recommends. None is a dependency: one that is not there is told.

Their models, too, answer at once and in this process; nothing here uses a network.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import psutil

from ...sandbox_image.image import default_tag
from ..bench_docker import docker_run
from .metrics import BWRAP, IPYKERNEL, RLM
from .subjects import Scale, Session, Subject, Trial
from .trials import Interactive

_SECONDS = 60.0
_PYTHON = os.path.realpath(sys.executable)


class Program(Subject):
    """An interpreter that starts, runs one piece of code and ends."""

    @abstractmethod
    def first_output(self) -> float:
        """Seconds from the start to the output."""

    def trial(self, metric: str, scale: Scale) -> AbstractContextManager[Trial] | None:
        """See ``Subject.trial``."""
        return self._starting() if metric == "open" else None

    @contextmanager
    def _starting(self) -> Generator[Trial]:
        self.first_output()
        yield lambda: {"": self.first_output() * 1e3}


class Bare(Program):
    """The interpreter alone: no walls at all."""

    name = "python -I -c"
    command: Sequence[str] = (_PYTHON, "-I", "-c", "print(1)")

    def first_output(self) -> float:
        """See ``Program.first_output``."""
        start = time.perf_counter()
        with subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            if not select.select([process.stdout], [], [], _SECONDS)[0]:
                process.kill()
            said = process.stdout.readline()
            took = time.perf_counter() - start
            if said != b"1\n":
                raise RuntimeError(f"{self.name} said {said!r} {process.stderr.read(500)!r}")
        return took


class Bubblewrap(Bare):
    """The interpreter in every namespace that bubblewrap has, with the host's files read-only."""

    name = BWRAP
    command = (
        "bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all", "--new-session",
        "--die-with-parent", *Bare.command,
    )  # fmt: skip

    def missing(self) -> str | None:
        """See ``Subject.missing``."""
        if shutil.which("bwrap") is None:
            return "apt install bubblewrap"
        tried = subprocess.run(self.command, capture_output=True, check=False, timeout=_SECONDS)
        return None if tried.returncode == 0 else tried.stderr.decode(errors="replace").strip()


class Docker(Program):
    """The interpreter in a container of the sandbox's image."""

    name = "docker run python -c"

    def missing(self) -> str | None:
        """See ``Subject.missing``."""
        if shutil.which("docker") is None or not (
            "DOCKER_HOST" in os.environ or os.path.exists("/var/run/docker.sock")
        ):
            return "start a docker daemon, and name it in DOCKER_HOST"
        looked = ["docker", "image", "inspect", default_tag()]
        if subprocess.run(looked, capture_output=True, check=False, timeout=_SECONDS).returncode:
            return "supdist-engine image build"
        return None

    def first_output(self) -> float:
        """See ``Program.first_output``."""
        return docker_run(default_tag(), None)


class Library(Interactive):
    """A package of Python.

    Attributes:
        modules: what it is imported by.
        install: what it is installed by.
    """

    modules: Sequence[str]
    install: str

    def missing(self) -> str | None:
        """See ``Subject.missing``."""
        return None if all(map(find_spec, self.modules)) else f"pip install {self.install}"


class Kernel(Session):
    """A Jupyter kernel behind a blocking client."""

    def __init__(self) -> None:
        manager: Any = import_module("jupyter_client.manager")
        self._manager, self._client = manager.start_new_kernel(
            kernel_name="python3", startup_timeout=_SECONDS, stderr=subprocess.DEVNULL
        )

    def run(self, code: str) -> str:
        """See ``Session.run``."""
        printed: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                printed.append(message["content"]["text"])

        reply = self._client.execute_interactive(code, timeout=_SECONDS, output_hook=hear)
        if reply["content"]["status"] != "ok":
            raise RuntimeError(f"the kernel says {reply['content']}")
        return "".join(printed)

    def close(self) -> None:
        """See ``Session.close``."""
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    def processes(self) -> list[int]:
        """See ``Session.processes``."""
        return _tree(int(self._manager.provisioner.pid))


class Ipykernel(Library):
    """What notebooks run in."""

    name = IPYKERNEL
    modules = ("ipykernel", "jupyter_client")
    install = "ipykernel jupyter_client"

    def start(self, context: object = "") -> Session:
        """See ``Interactive.start``."""
        return Kernel()


class Null:
    """A language model as rlm's handler asks it: it answers at once."""

    model_name = "null"

    def completion(self, prompt: object) -> str:
        """Next to nothing."""
        return "y"

    async def acompletion(self, prompt: object) -> str:
        """Next to nothing."""
        return "y"

    def get_last_usage(self) -> Any:
        """Of one call."""
        return import_module("rlm.core.types").ModelUsageSummary(1, 1, 1)


class Environment(Session):
    """An environment of rlm with the server through which its code asks models."""

    def __init__(self, kind: str, context: object, **options: object) -> None:
        self._stack = ExitStack()
        with ExitStack() as stack:
            handler = stack.enter_context(import_module("rlm.core.lm_handler").LMHandler(Null()))
            chosen = {"lm_handler_address": handler.address, "context_payload": context, **options}
            environments = import_module("rlm.environments")
            with _quiet_children():
                self._environment = environments.get_environment(kind, chosen)
            stack.callback(self._environment.cleanup)
            self._stack = stack.pop_all()

    def run(self, code: str) -> str:
        """See ``Session.run``."""
        result = self._environment.execute_code(code)
        if result.stderr:
            raise RuntimeError(f"rlm says {result.stderr[-500:]}")
        return result.stdout

    def close(self) -> None:
        """See ``Session.close``."""
        self._stack.close()


@contextmanager
def _quiet_children() -> Generator[None]:
    """Processes that are started here say nothing on stderr: a kernel warns of its own defaults at each start."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class RlmLocal(Library):
    """``exec`` in this very process."""

    name = RLM
    modules: Sequence[str] = ("rlm",)
    install = "rlms"
    ask = ("llm_query", "llm_query_batched")
    takes_context = True

    def start(self, context: object = "") -> Session:
        """See ``Interactive.start``."""
        return Environment("local", context or None)


class RlmIpython(RlmLocal):
    """A kernel of Jupyter in another process."""

    name = "rlm ipython"
    modules = ("rlm", "ipykernel", "jupyter_client")
    install = "rlms ipykernel jupyter_client"

    def start(self, context: object = "") -> Session:
        """See ``Interactive.start``."""
        return Environment("ipython", context or None, kernel_mode="subprocess")


class Interpreted(Session):
    """smolagents' own interpreter of Python's syntax tree."""

    def __init__(self) -> None:
        module: Any = import_module("smolagents.local_python_executor")
        self._executor = module.LocalPythonExecutor([], max_print_outputs_length=10**9)
        self._executor.send_tools({})

    def run(self, code: str) -> str:
        """See ``Session.run``."""
        return self._executor(code).logs

    def close(self) -> None:
        """See ``Session.close``."""


class Smolagents(Library):
    """Code agents' default executor, in this very process."""

    name = "smolagents local"
    modules = ("smolagents",)
    install = "smolagents"

    def start(self, context: object = "") -> Session:
        """See ``Interactive.start``."""
        return Interpreted()


def _tree(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


PEERS: tuple[Callable[[], Subject], ...] = (
    Bare, Bubblewrap, Docker, Ipykernel, RlmLocal, RlmIpython, Smolagents,
)  # fmt: skip
"""All of them. rlm's docker is not among them: it installs its requirements from the network in each container."""
