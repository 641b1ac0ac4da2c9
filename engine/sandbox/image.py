"""Builds the sandbox image with the Docker daemon's classic builder."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import sandbox_image
from ...sandbox_image import protocol
from ...sandbox_image.image import BASE, PROTOCOL_LABEL, PYTHON_LABEL, Variant, default_tag
from ..errors import SandboxUnavailable
from .docker_sdk import READ_LOG, START, reason, sdk

if TYPE_CHECKING:
    from docker import DockerClient

_SOURCES = Path(sandbox_image.__file__).parent

_DOWNLOAD_SECONDS = 600.0
_DAEMON_SECONDS = 600

_INSPECT_BASE = """
import json, shutil, sys
from pip._vendor.packaging.tags import sys_tags
platforms = sorted({tag.platform for tag in sys_tags()} - {"any"})
print(json.dumps({"python": sys.version_info[:2], "platforms": platforms, "ps": bool(shutil.which("ps"))}))
"""

# Takes a line of progress.
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Image:
    """A built image; ``size`` in bytes includes the base."""

    tag: str
    id: str
    size: int


@dataclass(frozen=True, slots=True)
class _Base:
    python: str
    platforms: tuple[str, ...]
    has_ps: bool


@contextmanager
def daemon() -> Generator[DockerClient]:
    """Yield a client of DOCKER_HOST's daemon, else of the default socket.

    Raises:
        SandboxUnavailable: no SDK, no daemon, or an error of it in the block.
    """
    docker = sdk()
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=_DAEMON_SECONDS)
        client.ping()
    # OSError: the SDK's HTTP library derives its errors from it.
    except (DockerException, OSError) as error:
        raise SandboxUnavailable(f"No Docker daemon answers ({reason(error)})", START) from error
    with closing(client):
        try:
            yield client
        except (DockerException, OSError) as error:
            raise SandboxUnavailable(
                f"The Docker daemon reported an error ({reason(error)})", READ_LOG
            ) from error


def build(
    base: str = BASE, tag: str | None = None, variant: Variant | None = None, report: Report = print
) -> Image:
    """Build the image and tag it.

    Raises:
        SandboxUnavailable: no daemon, base or wheels, or the build fails.
    """
    tag = tag or default_tag(variant)
    with daemon() as client, tempfile.TemporaryFile() as context:
        report(f"looking into {base}")
        found = _inspect_base(client, base)
        # pip downloads the pinned wheels here, on the host: the build itself needs no network.
        with tempfile.TemporaryDirectory() as folder:
            sets = ["guest", "mcp", *([variant] if variant else [])]
            for name in sets:
                report(f"downloading wheels: {name}, for Python {found.python}")
                _download(name, found, folder)
            write_context(context, Path(folder))
        context.seek(0)
        events = client.api.build(
            fileobj=context,
            custom_context=True,
            tag=tag,
            rm=True,
            forcerm=True,
            decode=True,
            buildargs={"BASE": base, "VARIANT": variant or ""},
            labels=_labels(base, found),
            # Only the installation of ps needs the network.
            network_mode="none" if found.has_ps else None,
        )
        _follow(events, report)
        image = client.images.get(tag)
        return Image(tag, str(image.id), int(image.attrs["Size"]))


def _inspect_base(client: DockerClient, base: str) -> _Base:
    from docker.errors import APIError, ContainerError

    try:
        output: Any = client.containers.run(
            base, ["-c", _INSPECT_BASE], entrypoint=["python3", "-I"], network_mode="none", remove=True
        )
        seen = json.loads(output)
    except APIError as error:
        raise SandboxUnavailable(
            f"The base image {base} cannot be started ({error.explanation})",
            "Name another one with --base: it needs python3, and must be here or in a registry.",
        ) from error
    except (ContainerError, ValueError) as error:
        raise SandboxUnavailable(
            f"The base image {base} has no Python with pip",
            "Choose a Debian with Python 3.11 or newer and pip, such as python:3.12-slim.",
        ) from error
    major, minor = seen["python"]
    if (major, minor) < (3, 11):
        raise SandboxUnavailable(
            f"The base image {base} has Python {major}.{minor}", "Choose one with Python 3.11 or newer."
        )
    return _Base(f"{major}.{minor}", tuple(seen["platforms"]), seen["ps"])


def _download(name: str, base: _Base, folder: str) -> None:
    if importlib.util.find_spec("pip") is None:
        raise SandboxUnavailable(
            "pip, which downloads the image's packages, is not installed", "`python -m ensurepip`."
        )
    command = [
        *(sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--dest", folder),
        # With hashes: the index is not trusted.
        *("--no-deps", "--require-hashes", "--only-binary", ":all:"),
        *("--implementation", "cp", "--python-version", base.python),
        *(f"--platform={platform}" for platform in base.platforms),
        *("-r", str(_SOURCES / "requirements" / f"{name}.txt")),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS)
    except subprocess.TimeoutExpired:
        raise SandboxUnavailable(
            "Downloading the image's packages took too long", "Check the network, and try again."
        ) from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().rpartition("\n")[2]
        raise SandboxUnavailable(
            f"The image's packages cannot be downloaded for Python {base.python} ({reason})",
            "Packages are pinned for Python 3.11 to 3.13 on x86_64 and aarch64 with glibc; pip needs "
            "the package index.",
        ) from error


def write_context(file: Any, wheels: Path) -> None:
    """Write a tar of the Dockerfile's files, equal for equal contents."""
    members = {path.name: path for path in [_SOURCES / "Dockerfile"]}
    members |= {f"bin/{path.name}": path for path in (_SOURCES / "bin").iterdir()}
    members |= {f"requirements/{path.name}": path for path in (_SOURCES / "requirements").glob("*.txt")}
    members |= {f"wheels/{path.name}": path for path in wheels.iterdir()}
    for path in _SOURCES.rglob("*.py"):
        members[f"supdist/sandbox_image/{path.relative_to(_SOURCES)}"] = path
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, path in sorted(members.items()):
            # No times and no owners: the daemon's cache compares the contents.
            entry = tarfile.TarInfo(name)
            data = path.read_bytes()
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))


def _labels(base: str, found: _Base) -> dict[str, str]:
    from importlib.metadata import version

    return {
        PROTOCOL_LABEL: str(protocol.VERSION),
        PYTHON_LABEL: found.python,
        "org.opencontainers.image.version": version("supdist-engine"),
        "org.opencontainers.image.base.name": base,
    }


def _follow(events: Any, report: Report) -> None:
    for event in events:
        if "error" in event:
            raise SandboxUnavailable(
                f"The image cannot be built ({event['error'].strip()})",
                "The lines above say which step failed; the base should be a Debian with Python and pip.",
            )
        for line in event.get("stream", "").splitlines():
            if line.strip():
                report(line.rstrip())
