"""Know the model servers that people start on their own machine: ports, and the variables that move them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import TaskError
from .hosts import origin_of

_ADDRESS = re.compile(
    r"((?P<scheme>https?)://)?(?P<host>[A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?(?P<path>/\S*)?"
)
# A server listens on these, but a client cannot rely on them.
_ANY_HOST = ("", "0.0.0.0", "[::]")  # noqa: S104 - compared, not bound to


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A kind of model server.

    Attributes:
        variable: names its address: HOST, HOST:PORT or a URL.
        key: the variable of its key; such a server rarely has one.
    """

    port: int
    variable: str
    key: str | None = None

    def url(self, environ: Mapping[str, str]) -> str:
        """Return the URL of its OpenAI-compatible API, on this machine if no variable moves it.

        Raises:
            TaskError: the variable holds no address.
        """
        text = environ.get(self.variable, "").strip().strip("\"'")
        # Ollama takes an IPv6 address without brackets.
        found = _ADDRESS.fullmatch(f"[{text}]" if _is_ipv6(text) else text)
        if found is None:
            raise TaskError(f"{self.variable} is no address of a server: give HOST:PORT or a URL")
        # As for OLLAMA_HOST: a URL has the port of its scheme, a host alone that of the server.
        scheme, port = found["scheme"], found["port"]
        place = "localhost" if found["host"] in _ANY_HOST else found["host"]
        number = port or (None if scheme else self.port)
        path = (found["path"] or "").rstrip("/")
        path = path if path.endswith("/v1") else f"{path}/v1"
        url = f"{scheme or 'http'}://{place}{f':{number}' if number else ''}{path}"
        try:
            origin_of(url)
        except TaskError as error:
            raise TaskError(f"{self.variable}: {error}") from error
        return url


SERVERS: Mapping[str, LocalServer] = {
    "ollama": LocalServer(11434, "OLLAMA_HOST"),
    "lmstudio": LocalServer(1234, "LMSTUDIO_BASE_URL", "LM_API_TOKEN"),
    "llamacpp": LocalServer(8080, "LLAMACPP_BASE_URL", "LLAMACPP_API_KEY"),
    "vllm": LocalServer(8000, "VLLM_BASE_URL", "VLLM_API_KEY"),
}

ADDRESS_VARIABLES = frozenset(server.variable for server in SERVERS.values())


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False
