"""What is special about containers; ``pytest --backend docker`` runs the contract in test_sandbox.py."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from docker_support import Relay, containers
from process_support import descendants
from pydantic import ValidationError
from support import SMALL, block

from supdist.engine import (
    Outcome,
    SandboxConfig,
    SandboxLost,
    SandboxRuntime,
    SandboxUnavailable,
    TaskError,
    arun,
    open_sandbox,
)
from supdist.engine.sandbox.containers import Image
from supdist.engine.sandbox.owner import current_owner
from supdist.handlers import ScriptedHandler

pytestmark = pytest.mark.anyio

DOCKER = SandboxConfig.model_validate({"backend": "docker", **SMALL})


def folders(lease: str | None = None) -> set[Path]:
    """Folders for contexts that this process has, or another."""
    found = {
        path
        for place in ("/dev/shm", tempfile.gettempdir())
        for path in Path(place).glob("supdist-contexts-*/lease")
    }
    return {path.parent for path in found if path.read_text() == (lease or current_owner())}


def running(docker: Any) -> set[str]:
    """Of this process's containers."""
    return {found["Id"] for found in docker.api.containers()} & containers(docker)


async def until(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert condition()


async def test_nothing_is_left_of_a_closed_sandbox(docker: Any) -> None:
    before, before_folders = containers(docker), folders()
    async with open_sandbox(DOCKER, context="c" * 1000) as sandbox:
        result = await sandbox.execute("print(len(context))")
        assert len(containers(docker) - before) == 1
        assert len(folders() - before_folders) == 1
    assert result.stdout == "1000\n"
    assert containers(docker) == before
    assert folders() == before_folders


ENGINE = """
import asyncio
from supdist.engine import SandboxConfig, open_sandbox
from supdist.engine.sandbox.owner import current_owner
async def one(config, started):
    async with open_sandbox(config) as sandbox:
        started.set()
        await sandbox.execute("while True: pass")
async def main():
    config = SandboxConfig(backend="docker", warm=1)
    events = [asyncio.Event() for _ in range(5)]
    tasks = [asyncio.create_task(one(config, event)) for event in events]
    for event in events:
        await event.wait()
    print(current_owner(), flush=True)
    await asyncio.gather(*tasks)
asyncio.run(main())
"""


async def test_the_next_engine_removes_what_a_killed_one_left(docker: Any) -> None:
    process = subprocess.Popen([sys.executable, "-c", ENGINE], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        lease = (await asyncio.to_thread(process.stdout.readline)).strip()
        below = descendants(process.pid)
        assert len(containers(docker, lease)) >= 5
        process.send_signal(signal.SIGKILL)
    async with SandboxRuntime(DOCKER):
        assert containers(docker, lease) == set()
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))
    await until(lambda: folders(lease) == set())


async def test_a_container_that_is_killed_from_outside_is_lost_and_not_a_result(docker: Any) -> None:
    before = containers(docker)
    async with open_sandbox(DOCKER) as sandbox:
        (own,) = containers(docker) - before
        running = asyncio.create_task(sandbox.execute("while True: pass"))
        await until(lambda: "python" in str(docker.containers.get(own).top()))
        docker.containers.get(own).kill()
        with pytest.raises(SandboxLost):
            await running
        await sandbox.reset()
        assert (await sandbox.execute("print(1)")).stdout == "1\n"
    assert containers(docker) == before


async def test_memory_that_only_the_kernel_bounds_is_oom(docker: Any) -> None:
    async with open_sandbox(DOCKER) as sandbox:
        one_of_many = await sandbox.execute(
            "import os, time\nfor _ in range(4):\n  if os.fork() == 0:\n    held = b'x' * (100 << 20)\n"
            "    time.sleep(3)\n"
            "    os._exit(0)\nfor _ in range(4): os.wait()"
        )
    assert one_of_many.outcome is Outcome.OOM, one_of_many
    assert one_of_many.usage.source == "cgroup"
    assert one_of_many.usage.peak_memory > 100 << 20


async def test_a_sandbox_from_the_pool_is_a_container_that_was_there_before(docker: Any) -> None:
    before = containers(docker)
    config = DOCKER.model_copy(update={"warm": 2})
    async with SandboxRuntime(config):
        await until(lambda: len(containers(docker) - before) == 2)
        ready = containers(docker) - before  # or about to be
        async with open_sandbox(config) as sandbox:
            assert (await sandbox.execute("print(1)")).stdout == "1\n"
            await until(lambda: len(containers(docker) - before) == 3)
        await until(lambda: len(containers(docker) & ready) == 1)  # used and removed
    assert containers(docker) == before


async def test_what_died_in_the_pool_is_not_given_to_anybody(docker: Any) -> None:
    before = containers(docker)
    config = DOCKER.model_copy(update={"warm": 1})
    async with SandboxRuntime(config):
        await until(lambda: running(docker) - before)
        (ready,) = running(docker) - before
        docker.containers.get(ready).kill()
        await until(lambda: ready not in running(docker))
        async with open_sandbox(config) as sandbox:
            assert (await sandbox.execute("print(1)")).stdout == "1\n"
    assert containers(docker) == before


async def test_a_start_that_is_given_up_leaves_nothing(docker: Any) -> None:
    before = containers(docker)
    async with SandboxRuntime(DOCKER):
        for seconds in (0.0, 0.02, 0.1, 0.3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(seconds), open_sandbox(DOCKER):
                    await asyncio.sleep(seconds)
    assert containers(docker) == before


# The daemon, over a port: where it is elsewhere, hangs, or goes


async def test_a_context_reaches_a_daemon_elsewhere_in_frames(
    docker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folders()
    async with Relay().served() as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        async with open_sandbox(DOCKER, context={"text": "é\ud800" * 500_000}) as sandbox:
            result = await sandbox.execute("print(len(context['text']), ascii(context['text'][:2]))")
            assert result.usage.source == "none"  # nobody here can see its control groups
        assert result.stdout == "1000000 '\\xe9\\ud800'\n"
    assert folders() == before
    async with Relay().served() as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        with pytest.raises(TaskError, match="67107840"):
            async with open_sandbox(DOCKER, context="x" * (65 << 20)):
                pass


@pytest.mark.timing
async def test_a_daemon_that_dies_under_a_cell_is_an_error_at_once(
    docker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Relay()
    async with relay.served() as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        async with open_sandbox(DOCKER) as sandbox:
            running = asyncio.create_task(sandbox.execute("while True: pass"))
            await asyncio.sleep(0.2)
            started = time.monotonic()
            await relay.die()
            with pytest.raises(SandboxLost):
                await running
            assert time.monotonic() - started < 5
            with pytest.raises(SandboxUnavailable):
                await sandbox.reset()
    monkeypatch.undo()
    async with SandboxRuntime(DOCKER):  # what could not be removed then
        pass


@pytest.mark.timing
async def test_a_daemon_that_hangs_is_not_waited_for_longer_than_the_start_may_take(
    docker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Relay()
    async with relay.served() as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        config = DOCKER.model_copy(update={"start_timeout": 0.5})
        async with SandboxRuntime(config):
            relay.is_silent.set()
            started = time.monotonic()
            with pytest.raises(SandboxUnavailable, match="did not start within"):
                async with open_sandbox(config):
                    pass
            assert time.monotonic() - started < 5
            await relay.die()


# What cannot be had


async def test_without_a_daemon_the_error_says_where_it_was_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(SandboxUnavailable, match="nowhere") as caught:
        async with open_sandbox(DOCKER):
            pass
    assert "DOCKER_HOST" in caught.value.remedy


class _Version(BaseHTTPRequestHandler):
    """A daemon that tells its version and nothing else."""

    told: ClassVar[dict[str, object]]

    def do_GET(self) -> None:
        body = json.dumps(self.told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"ApiVersion": "1.40"}, "too old: its API is 1.40"),
        ({"ApiVersion": "1.41", "Components": [{"Name": "Podman Engine"}]}, "Podman's compatible API"),
    ],
    ids=["old", "podman"],
)
async def test_a_daemon_that_will_not_do_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, object], why: str
) -> None:
    handler = type("Handler", (_Version,), {"told": told})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.server_port}")
        try:
            with pytest.raises(SandboxUnavailable, match=why):
                async with open_sandbox(DOCKER):
                    pass
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("host", ["ssh://somewhere", "tcp://127.0.0.1:2376"])
async def test_a_daemon_behind_tls_or_ssh_is_refused_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    if host.startswith("tcp"):
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
        monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
        for name in ("ca", "cert", "key"):
            (tmp_path / f"{name}.pem").touch()
    with pytest.raises(SandboxUnavailable, match="cannot be handed over"):
        async with open_sandbox(DOCKER):
            pass


async def test_an_image_or_a_runtime_that_is_not_there_is_named(docker: Any) -> None:
    for update, match in (
        ({"image": "nobody/built:this"}, "nobody/built:this"),
        ({"runtime": "imaginary"}, "imaginary"),
        ({"image": "supdist-test-base"}, "not built on a sandbox image"),
    ):
        with pytest.raises(SandboxUnavailable, match=match):
            async with open_sandbox(DOCKER.model_copy(update=update)):
                pass


async def test_a_runtime_that_ignores_the_limits_is_refused(docker: Any) -> None:
    runsc = docker.info()["Runtimes"].get("runsc", {})
    if "--ignore-cgroups" not in runsc.get("runtimeArgs", []):
        pytest.skip("the daemon has no runsc with --ignore-cgroups")
    config = DOCKER.model_copy(update={"runtime": "runsc"})
    with pytest.raises(SandboxUnavailable, match="ignores control groups"):
        async with open_sandbox(config):
            pass
    async with open_sandbox(config.model_copy(update={"isolation": "best_effort"})) as sandbox:
        assert not sandbox.isolation.limited
        assert (await sandbox.execute("print(1)")).stdout == "1\n"


@pytest.mark.parametrize("option", [{"image": "x"}, {"runtime": "runsc"}, {"warm": 1}])
def test_what_is_for_containers_is_refused_elsewhere(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="is for containers"):
        SandboxConfig.model_validate(option)


def test_functions_are_not_sent_to_another_version_of_python() -> None:
    Image("image", f"{sys.version_info.major}.{sys.version_info.minor}", is_gvisor=False).check_python()
    with pytest.raises(TaskError, match=r"Python 3\.8"):
        Image("image", "3.8", is_gvisor=False).check_python()


async def test_packages_can_be_imported_and_not_changed(docker: Any, tmp_path: Path) -> None:
    (tmp_path / "greeting.py").write_text("text = 'hello'")
    tmp_path.chmod(0o755)
    config = DOCKER.model_copy(update={"packages": str(tmp_path)})
    async with open_sandbox(config) as sandbox:
        result = await sandbox.execute(
            "import greeting, subprocess, sys\nprint(greeting.text)\n"
            "print(subprocess.run([sys.executable, '-c', 'import greeting; print(greeting.__file__)'],"
            " capture_output=True, text=True).stdout)\n"
            "open('/opt/packages/x', 'w')"
        )
    assert result.stdout == "hello\n/opt/packages/greeting.py\n\n"
    assert result.error is not None
    assert result.error.type == "OSError"


async def test_a_run_goes_through_a_container(docker: Any) -> None:
    result = await arun(
        query="q",
        context="words",
        supervisor=ScriptedHandler([block("FINAL(worker(context))")]),
        worker=ScriptedHandler(["answered"]),
        sandbox=DOCKER,
    )
    assert result.answer == "answered"


async def test_no_variable_of_the_engine_reaches_a_container(
    docker: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(
        '{"proxies": {"default": {"httpProxy": "http://canary:secret@proxy"}}}'
    )
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("SUPDIST_CANARY", "canary")
    before = containers(docker)
    async with open_sandbox(DOCKER) as sandbox:
        (own,) = containers(docker) - before
        result = await sandbox.execute("import os; print(sorted(os.environ))")
        inspected = str(docker.api.inspect_container(own))
    assert "canary" not in result.stdout + inspected
    assert os.path.basename(str(tmp_path)) not in inspected
