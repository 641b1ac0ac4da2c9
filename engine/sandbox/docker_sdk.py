"""Connects to a Docker daemon."""

from __future__ import annotations

import socket
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ...sandbox_image.text import shorten
from ..errors import SandboxUnavailable

REQUEST_SECONDS = 20
# The first version that knows ``CgroupnsMode``: Docker 20.10.
API = "1.41"

START = (
    "Start it (`systemctl start docker`), set DOCKER_HOST to its socket, or join the group that may use it."
)
READ_LOG = "The daemon's own log says more (`journalctl -u docker`)."

_PODMAN = "Podman Engine"
_DEFAULT_PORT = 2375
_REASON_CHARS = 300


class Connection(NamedTuple):
    """The SDK's client, and the daemon's URL."""

    client: Any
    url: str


def sdk() -> Any:
    """Import the module ``docker``.

    Raises:
        SandboxUnavailable: it is not installed.
    """
    try:
        import docker
    except ImportError:
        raise SandboxUnavailable(
            "The Docker SDK for Python is not installed",
            "Install it: `pip install 'supdist-engine[docker]'`.",
        ) from None
    return docker


def connect() -> Connection:
    """Connect to DOCKER_HOST's daemon, else to the default socket.

    Raises:
        SandboxUnavailable: there is none, it is too old, or it cannot hand over streams.
    """
    docker = sdk()
    from docker.errors import DockerException

    environment = docker.utils.kwargs_from_env()
    url = environment.get("base_url") or "unix:///var/run/docker.sock"
    # A shim gets the descriptor of a container's stream. TLS and ssh end in this process.
    if "tls" in environment or url.startswith(("https:", "ssh:")):
        raise SandboxUnavailable(
            f"A container's stream cannot be handed over by the daemon at {url}",
            "Forward its socket and use that: `ssh -N -L 127.0.0.1:2375:/var/run/docker.sock HOST` and "
            "DOCKER_HOST=tcp://127.0.0.1:2375.",
        )
    client = None
    try:
        # Tried first: the SDK does not close a socket that it could not connect.
        dial(url).close()
        client = docker.APIClient(base_url=url, version=API, timeout=REQUEST_SECONDS)
        # It would keep one open connection for each address, and each container has its own addresses.
        client.headers["Connection"] = "close"
        served = client.version(api_version=False)
    except (DockerException, OSError) as error:
        if client is not None:
            client.close()
        raise SandboxUnavailable(f"No Docker daemon answers at {url} ({reason(error)})", START) from error
    try:
        _check_version(served)
    except SandboxUnavailable:
        client.close()
        raise
    return Connection(client, url)


def dial(url: str) -> socket.socket:
    """Open a socket to the daemon.

    Raises:
        OSError: it cannot be reached.
    """
    if not is_local(url):
        address = urlsplit(url)
        return socket.create_connection((address.hostname, address.port or _DEFAULT_PORT), REQUEST_SECONDS)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(REQUEST_SECONDS)
        sock.connect(url.split("://", 1)[1])
    except BaseException:
        sock.close()
        raise
    return sock


def is_local(url: str) -> bool:
    """Return whether the daemon is on this machine."""
    return url.startswith(("unix:", "http+unix:"))


def reason(error: BaseException) -> str:
    """Return an error's own words on one line."""
    # The SDK wraps the daemon's words in several layers.
    explanation = getattr(error, "explanation", None)
    return shorten(" ".join(str(explanation or error).split()), _REASON_CHARS)


def _check_version(served: dict[str, Any]) -> None:
    if any(part.get("Name") == _PODMAN for part in served.get("Components", [])):
        raise SandboxUnavailable(
            "Podman's compatible API cannot limit the files of a tmpfs, nor take a system-call filter "
            "by value",
            "Set DOCKER_HOST to a Docker daemon, or use the process backend, which needs none.",
        )
    if _parse_version(served["ApiVersion"]) < _parse_version(API):
        raise SandboxUnavailable(
            f"The Docker daemon is too old: its API is {served['ApiVersion']}, and {API} is needed",
            "Use Docker 20.10 or newer.",
        )


def _parse_version(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
