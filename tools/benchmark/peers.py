"""Peers: other software that runs Python code, each used as its documentation recommends.

None is a dependency. Nothing here uses a network.
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
    """An interpreter that runs one piece of code and ends."""

    @abstractmethod
    def first_output(self) -> float:
        """Return the seconds from its start to its output."""

    def trial(self, metric: str, scale: Scale) -> AbstractContextManager[Trial] | None:
        """See ``Subject.trial``."""
        return self._open() if metric == "open" else None

    @contextmanager
    def _open(self) -> Generator[Trial]:
        self.first_output()
        yield lambda: {"": self.first_output() * 1e3}


class PlainPython(Program):
    """The interpreter alone, without isolation."""

    name = "python -I -c"
    command: Sequence[str] = (_PYTHON, "-I", "-c", "print(1)")

    def first_output(self) -> float:
        """See ``Program.first_output``."""
        start = time.perf_counter()
        with subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            # A program that never prints is killed.
            if not select.select([process.stdout], [], [], _SECONDS)[0]:
                process.kill()
            line = process.stdout.readline()
            took = time.perf_counter() - start
            if line != b"1\n":
                raise RuntimeError(f"{self.name} printed {line!r} {process.stderr.read(500)!r} instead of 1")
        return took


class Bubblewrap(PlainPython):
    """The interpreter in all namespaces of bubblewrap."""

    name = BWRAP
    command = (
        "bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all", "--new-session",
        "--die-with-parent", *PlainPython.command,
    )  # fmt: skip

    def missing(self) -> str | None:
        """See ``Subject.missing``."""
        if shutil.which("bwrap") is None:
            return "apt install bubblewrap"
        # It may be installed and not allowed to make namespaces.
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
        inspect = ["docker", "image", "inspect", default_tag()]
        if subprocess.run(inspect, capture_output=True, check=False, timeout=_SECONDS).returncode:
            return "supdist-engine image build"
        return None

    def first_output(self) -> float:
        """See ``Program.first_output``."""
        return docker_run(default_tag(), None)


class Library(Interactive):
    """A Python package, with the names to import and to install."""

    modules: Sequence[str]
    install: str

    def missing(self) -> str | None:
        """See ``Subject.missing``."""
        return None if all(map(find_spec, self.modules)) else f"pip install {self.install}"


class JupyterSession(Session):
    """A Jupyter kernel with a blocking client."""

    def __init__(self) -> None:
        manager: Any = import_module("jupyter_client.manager")
        self._manager, self._client = manager.start_new_kernel(
            kernel_name="python3", startup_timeout=_SECONDS, stderr=subprocess.DEVNULL
        )

    def run(self, code: str) -> str:
        """See ``Session.run``."""
        printed: list[str] = []

        def collect(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                printed.append(message["content"]["text"])

        reply = self._client.execute_interactive(code, timeout=_SECONDS, output_hook=collect)
        if reply["content"]["status"] != "ok":
            raise RuntimeError(f"the Jupyter kernel replied {reply['content']}")
        return "".join(printed)

    def close(self) -> None:
        """See ``Session.close``."""
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    def processes(self) -> list[int]:
        """See ``Session.processes``."""
        kernel = psutil.Process(int(self._manager.provisioner.pid))
        return [kernel.pid, *(child.pid for child in kernel.children(recursive=True))]


class Ipykernel(Library):
    """The kernel of Jupyter notebooks."""

    name = IPYKERNEL
    modules = ("ipykernel", "jupyter_client")
    install = "ipykernel jupyter_client"

    def start(self, context: object = "") -> Session:
        """See ``Interactive.start``."""
        return JupyterSession()


class InstantRlmModel:
    """A model with rlm's interface. It answers at once."""

    model_name = "null"

    def completion(self, prompt: object) -> str:
        """Return the same answer."""
        return "y"

    async def acompletion(self, prompt: object) -> str:
        """Return the same answer."""
        return "y"

    def get_last_usage(self) -> Any:
        """Return the usage of one call."""
        return import_module("rlm.core.types").ModelUsageSummary(1, 1, 1)


class RlmSession(Session):
    """An environment of rlm with its model server."""

    def __init__(self, kind: str, context: object, **options: object) -> None:
        # The stack closes the server if the environment cannot be made.
        with ExitStack() as stack:
            handler = import_module("rlm.core.lm_handler").LMHandler(InstantRlmModel())
            stack.enter_context(handler)
            chosen = {"lm_handler_address": handler.address, "context_payload": context, **options}
            environments = import_module("rlm.environments")
            with _without_stderr():
                self._environment = environments.get_environment(kind, chosen)
            stack.callback(self._environment.cleanup)
            self._stack = stack.pop_all()

    def run(self, code: str) -> str:
        """See ``Session.run``."""
        result = self._environment.execute_code(code)
        if result.stderr:
            raise RuntimeError(f"rlm printed on stderr: {result.stderr[-500:]}")
        return result.stdout

    def close(self) -> None:
        """See ``Session.close``."""
        self._stack.close()


@contextmanager
def _without_stderr() -> Generator[None]:
    # Processes that are started here inherit it: a kernel warns of its own defaults at each start.
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class RlmLocal(Library):
    """``exec`` in this process."""

    name = RLM
    modules: Sequence[str] = ("rlm",)
    install = "rlms"
    ask = ("llm_query", "llm_query_batched")
    takes_context = True

    def start(self, context: object = "") -> Session:
        """See ``Interactive.start``."""
        return RlmSession("local", context or None)


class RlmIpython(RlmLocal):
    """A Jupyter kernel in another process."""

    name = "rlm ipython"
    modules = ("rlm", "ipykernel", "jupyter_client")
    install = "rlms ipykernel jupyter_client"

    def start(self, context: object = "") -> Session:
        """See ``Interactive.start``."""
        return RlmSession("ipython", context or None, kernel_mode="subprocess")


class SmolagentsSession(Session):
    """smolagents' interpreter of Python syntax trees."""

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
    """The default executor of smolagents' code agents, in this process."""

    name = "smolagents local"
    modules = ("smolagents",)
    install = "smolagents"

    def start(self, context: object = "") -> Session:
        """See ``Interactive.start``."""
        return SmolagentsSession()


# Without rlm's docker environment: it installs its requirements from the network in each container.
PEERS: tuple[Callable[[], Subject], ...] = (
    PlainPython, Bubblewrap, Docker, Ipykernel, RlmLocal, RlmIpython, Smolagents,
)  # fmt: skip
