"""The sandbox's image, in a daemon: what is in it, what it says, and what is built on it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pytest
from docker import DockerClient
from guest_support import Guest, guest
from process_support import COMMAND
from support import REPOSITORY

from supdist.engine.sandbox.image import write_context
from supdist.sandbox_image import protocol
from supdist.sandbox_image.image import PROTOCOL_LABEL, PYTHON_LABEL, default_tag
from supdist.sandbox_image.protocol import Done, Load, ReplExit

CONTEXT = Load("text", "frame", b"text")
HARDENED = (
    *("--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
    f"--security-opt=seccomp={REPOSITORY / 'sandbox_image/seccomp.json'}",
    *("--memory=256m", "--memory-swap=256m", "--pids-limit=64", "--cpus=1", "--ulimit=nofile=64:128"),
    *(
        "--tmpfs=/work:size=16m,uid=65534,gid=65534",
        "--tmpfs=/tmp:size=16m",
        "--ipc=private",
        "--cgroupns=private",
    ),
)

Speak = Callable[[Sequence[str]], AbstractContextManager[Guest]]


@pytest.fixture(params=["runc", "runsc"])
def runtime(request: pytest.FixtureRequest, docker: DockerClient) -> str:
    """Each runtime; gVisor where the daemon has it."""
    if request.param not in docker.info()["Runtimes"]:
        reason = f"the docker daemon has no runtime {request.param}"
        if os.environ.get("SUPDIST_REQUIRE_DOCKER"):
            pytest.fail(reason)
        pytest.skip(reason)
    return request.param


@pytest.fixture
def speak(runtime: str) -> Speak:
    """Starts a container with options of ``docker run``, which speaks on its stdin and stdout."""
    return lambda options: guest(
        ["docker", "run", "--rm", "-i", f"--runtime={runtime}", *options, default_tag()]
    )


@pytest.fixture
def inside(docker: DockerClient) -> Callable[..., str]:
    """Runs a program in the image: its output."""

    def run(*command: str, image: str = default_tag(), **options: Any) -> str:
        output = cast(
            "bytes",
            docker.containers.run(image, list(command), network_mode="none", remove=True, **options),
        )
        return output.decode()

    return run


@pytest.mark.docker
@pytest.mark.parametrize("options", [("--network=none",), HARDENED], ids=["plain", "hardened"])
def test_alone_it_speaks_the_protocol_whatever_is_printed(options: Sequence[str], speak: Speak) -> None:
    with speak(options) as guest_end:
        facts = guest_end.start(CONTEXT).facts
        assert (facts.uid, facts.interfaces) == (65534, ["lo"])
        assert (facts.capabilities == 0) is (options is HARDENED)
        assert facts.root_writable is not (options is HARDENED)
        text, end = guest_end.run(
            "import contextlib, os, subprocess\n"
            "print(context, os.getcwd())\n"
            "for fd in (0, 1, 2):\n"
            "    with contextlib.suppress(OSError):\n"
            "        os.write(os.open(f'/proc/1/fd/{fd}', os.O_WRONLY), b'junk')\n"
            "print(subprocess.run(['ps', '-A', '-o', 'pid='], capture_output=True,"
            " text=True).stdout.split()[0])"
        )
        assert (text, end) == ("text /work\n1\n", Done(1, None))


@pytest.mark.docker
def test_init_tells_how_its_repl_died_and_hears_no_signals_of_it(speak: Speak, runtime: str) -> None:
    with speak(HARDENED) as guest_end:
        guest_end.start(CONTEXT)
        if runtime == "runc":  # gVisor lets a process kill the first one of its namespace
            assert guest_end.run("import os\nfor number in (1, 2, 9, 10, 15): os.kill(1, number)")[1] == Done(
                1, None
            )
        assert guest_end.run("import os; os.kill(os.getpid(), 9)")[1] == ReplExit(9, hung_up=False)
        guest_end.close_input()
        assert guest_end.receive() is None
        assert guest_end.process.wait(60) == 0


@pytest.mark.docker
def test_the_context_can_be_a_read_only_mount(docker: DockerClient, tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"\xed\xa0\x80 mounted")
    mount = f"--volume={file}:{protocol.CONTEXT_FILE}:ro"
    with guest(["docker", "run", "--rm", "-i", *HARDENED, mount, default_tag()]) as guest_end:
        guest_end.start(Load("text", "file", b""))
        assert guest_end.run("print(ascii(context))")[0] == "'\\ud800 mounted'\n"


@pytest.mark.docker
def test_it_is_a_plain_python_for_whoever_runs_a_program_in_it(inside: Callable[..., str]) -> None:
    assert inside("python", "-c", "print(1)") == "1\n"
    assert (
        inside(
            "python", "-I", "-c", "import msgspec, cloudpickle, supdist.sandbox_image.guest.init; print(2)"
        )
        == "2\n"
    )
    assert inside("sh", "-c", "id -u; id -g; pwd; touch file && ls") == "65534\n65534\n/work\nfile\n"


@pytest.mark.docker
def test_what_serves_other_protocols_is_on_the_path_and_its_sdk_out_of_sight(
    inside: Callable[..., str],
) -> None:
    assert inside("sh", "-c", "command -v mcp") == "/usr/local/bin/mcp\n"
    assert inside("python", "-c", "import importlib.util; print(importlib.util.find_spec('mcp'))") == "None\n"
    assert (
        inside("python", "-I", "-c", "import sys; sys.path.append('/opt/mcp'); import mcp; print(3)") == "3\n"
    )


@pytest.mark.docker
def test_nothing_in_it_raises_rights_or_compiles(inside: Callable[..., str]) -> None:
    assert inside("find", "/", "-xdev", "-type", "f", "-perm", "/6000", user="0") == ""
    compilers = "cc gcc c++ g++ clang tcc as ld make"
    assert inside("sh", "-c", f"for name in {compilers}; do command -v $name; done; true") == ""


@pytest.mark.docker
def test_every_module_of_the_guest_is_compiled_beforehand(inside: Callable[..., str]) -> None:
    """The root is read-only: what is not would be compiled anew at each start."""
    code = (
        "import supdist.sandbox_image.guest.__main__, concurrent.futures.thread, os, sys\n"
        "modules = [one for one in sys.modules.values() if getattr(one, '__cached__', None)]\n"
        "print(len(modules) > 50, [one.__name__ for one in modules if not os.path.exists(one.__cached__)])"
    )
    assert inside("python", "-I", "-c", code) == "True []\n"


@pytest.mark.docker
def test_it_says_what_it_is(docker: DockerClient, inside: Callable[..., str]) -> None:
    labels = docker.images.get(default_tag()).labels
    assert labels[PROTOCOL_LABEL] == str(protocol.VERSION)
    assert labels["org.opencontainers.image.version"] == version("supdist-engine")
    bill = json.loads(inside("cat", "/usr/share/supdist/versions.json"))
    versions = {component["name"]: component["version"] for component in bill["components"]}
    assert versions["python"].startswith(labels[PYTHON_LABEL] + ".")
    assert {"msgspec", "cloudpickle", "mcp", "procps", "libc6"} <= versions.keys()


@pytest.mark.docker
@pytest.mark.slow
def test_packages_are_added_in_three_lines(docker: DockerClient, tmp_path: Path) -> None:
    """As CONTRIBUTING.md shows it, but from a wheel of our own instead of the package index."""
    contributing = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    first, *others = contributing.partition("```dockerfile\n")[2].partition("```")[0].splitlines()
    assert first == f"FROM {default_tag()}"
    assert len(others) == 2
    local = ["COPY wheels /wheels", "ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels"]
    (tmp_path / "Dockerfile").write_text("\n".join([first, *local, *others]))
    (tmp_path / "wheels").mkdir()
    write_wheel(tmp_path / "wheels/greeting-1.0-py3-none-any.whl")
    image, _ = docker.images.build(path=str(tmp_path), rm=True, network_mode="none")
    try:
        with guest(
            ["docker", "run", "--rm", "-i", "--user=65534:65534", *HARDENED, str(image.id)]
        ) as guest_end:
            assert guest_end.start(CONTEXT).facts.uid == 65534
            assert guest_end.run("import greeting; print(greeting.TEXT)")[0] == "hello\n"
    finally:
        docker.images.remove(str(image.id))


def write_wheel(path: Path) -> None:
    info = "greeting-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("greeting.py", "TEXT = 'hello'\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_a_context_of_the_same_files_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "one.whl").write_bytes(b"wheel")
    made: list[bytes] = []
    for _ in range(2):
        with io.BytesIO() as file:
            write_context(file, tmp_path)
            made.append(file.getvalue())
        os.utime(tmp_path / "one.whl", (0, 0))
    assert made[0] == made[1]
    with tarfile.open(fileobj=io.BytesIO(made[0])) as tar:
        names = tar.getnames()
    assert {
        "Dockerfile",
        "wheels/one.whl",
        "requirements/guest.txt",
        "supdist/sandbox_image/guest/init.py",
        "supdist/sandbox_image/guest_session/session.py",  # the MCP server judges its guest by it
    } <= set(names)
    assert not [name for name in names if "engine" in name or "jail" in name]
    assert not [name for name in names if "pyc" in name]


command = partial(subprocess.run, check=False, capture_output=True, text=True, timeout=120)
BUILD = [*COMMAND, "image", "build"]


def test_without_a_daemon_the_build_says_what_to_do(tmp_path: Path) -> None:
    done = command(BUILD, env={**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/none"})
    assert done.returncode == 4
    assert "DOCKER_HOST" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_variant_is_a_wrong_argument() -> None:
    done = command([*BUILD, "--variant", "everything"])
    assert done.returncode == 2
    assert "there is data" in done.stderr


@pytest.mark.docker
def test_a_base_that_cannot_be_had_is_said(docker: DockerClient) -> None:
    done = command([*BUILD, "--base", "supdist-no-such-base"])
    assert done.returncode == 4
    assert "--base" in done.stderr
    assert "Traceback" not in done.stderr


CHECK = [*COMMAND, "image", "check"]


@pytest.mark.docker
@pytest.mark.slow
def test_check_tries_the_walls_from_inside(docker: DockerClient) -> None:
    done = command([*CHECK, "--json"])
    assert done.returncode == 0, done.stdout
    told = json.loads(done.stdout)
    assert (told["backend"], told["holds"]) == ("docker", True)
    assert {"network", "memory", "system calls"} <= {finding["layer"] for finding in told["findings"]}


@pytest.mark.docker
def test_an_image_that_cannot_be_had_does_not_hold(docker: DockerClient) -> None:
    done = command([*CHECK, "supdist-no-such-image"])
    assert done.returncode == 4
    assert "image build" in done.stdout
