"""Know which key belongs to which host."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import TaskError

# Clients of any endpoint read this variable unless another is named.
DEFAULT_KEY = "OPENAI_API_KEY"

# Variables that name an endpoint. If one place sets such a URL and the key, the key may go to any host of it.
ENDPOINT_VARIABLES: Mapping[str, tuple[str, ...]] = {
    "BASE_URL": (DEFAULT_KEY, "TOGETHER_API_KEY"),
    "OPENAI_BASE_URL": (DEFAULT_KEY,),
}

# The user adds more: supdist-engine trust host HOST --key VARIABLE.
# By https host, on the default port; the variables are those of the provider's documentation.
# Hosts where anybody can rent a name are left out.
_PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "api.openai.com": ("OPENAI_API_KEY",),
    "eu.api.openai.com": ("OPENAI_API_KEY",),
    "us.api.openai.com": ("OPENAI_API_KEY",),
    "api.together.xyz": ("TOGETHER_API_KEY",),
    "api.together.ai": ("TOGETHER_API_KEY",),
    "api.anthropic.com": ("ANTHROPIC_API_KEY",),
    "generativelanguage.googleapis.com": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "openrouter.ai": ("OPENROUTER_API_KEY",),
    "api.groq.com": ("GROQ_API_KEY",),
    "api.mistral.ai": ("MISTRAL_API_KEY",),
    "api.deepseek.com": ("DEEPSEEK_API_KEY",),
    "api.fireworks.ai": ("FIREWORKS_API_KEY",),
    "router.huggingface.co": ("HF_TOKEN",),
    "api-inference.huggingface.co": ("HF_TOKEN",),
    "api.x.ai": ("XAI_API_KEY",),
    "api.cohere.ai": ("COHERE_API_KEY", "CO_API_KEY"),
    "api.cohere.com": ("COHERE_API_KEY", "CO_API_KEY"),
    "api.cerebras.ai": ("CEREBRAS_API_KEY",),
    "api.perplexity.ai": ("PERPLEXITY_API_KEY",),
    "api.deepinfra.com": ("DEEPINFRA_API_KEY", "DEEPINFRA_TOKEN"),
    "api.sambanova.ai": ("SAMBANOVA_API_KEY",),
    "api.novita.ai": ("NOVITA_API_KEY",),
    "api.hyperbolic.xyz": ("HYPERBOLIC_API_KEY",),
    "api.moonshot.ai": ("MOONSHOT_API_KEY",),
    "api.z.ai": ("ZAI_API_KEY",),
    "dashscope.aliyuncs.com": ("DASHSCOPE_API_KEY",),
    "dashscope-intl.aliyuncs.com": ("DASHSCOPE_API_KEY",),
    "integrate.api.nvidia.com": ("NVIDIA_API_KEY",),
    "api.studio.nebius.com": ("NEBIUS_API_KEY",),
    "api.tokenfactory.nebius.com": ("NEBIUS_API_KEY",),
    "ollama.com": ("OLLAMA_API_KEY",),
}

# Servers that people start on their own machine.
_LOCAL_SERVERS = ("VLLM_API_KEY", "SGLANG_API_KEY", "LITELLM_API_KEY", "LM_API_TOKEN", "LLAMACPP_API_KEY")

_PORTS = {"http": 80, "https": 443}
# Stricter than any URL parser: two parsers must not read two hosts out of one text.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<user>[^\s/@\\?#]*@)?(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[^\s\\#\x00-\x1f\x7f]*)?(?P<query>\?[^\s\\#\x00-\x1f\x7f]*)?"
)
_HOST = re.compile(
    r"((?P<scheme>https?)://)?(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?/?"
)


# A rule for both schemes has none.
class Origin(NamedTuple):
    """The scheme, host and port of a URL."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return self.host if self.port == 443 else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The origin as rules have it."""
        default = _PORTS.get(self.scheme) == self.port
        start = f"{self.scheme}://" if self.scheme else ""
        return f"{start}{self.host}" if default else f"{start}{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def is_readable_by_network(self) -> bool:
        """Whether the network can read the traffic."""
        return self.scheme != "https" and not self.is_loopback

    def covers(self, other: Origin) -> bool:
        """Return whether a rule for this origin holds for another."""
        return (self.host, self.port) == (other.host, other.port) and self.scheme in ("", other.scheme)


def origin_of(url: str) -> Origin:
    """Return the origin of an endpoint's URL.

    Raises:
        TaskError: it is no http or https URL, or ambiguous.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise TaskError(f"base_url {url[:200]!r} is no URL of an endpoint; give http(s)://HOST[:PORT][/PATH]")
    return _origin(found["scheme"].lower(), found["host"], found["port"], url)


def parse_host(text: str) -> Origin:
    """Return the origin of what a user typed, or raise a ``TaskError``."""
    # gpu-box:8000 means both schemes, gpu-box means https.
    if "://" in text and "@" not in text and _URL.fullmatch(text):
        # The URL of an endpoint; its path does not matter.
        return origin_of(text)
    found = _HOST.fullmatch(text)
    if found is None:
        raise TaskError(f"{text[:200]!r} is no host: give HOST:PORT, https://HOST or http://HOST:PORT")
    scheme = found["scheme"] or ("" if found["port"] else "https")
    return _origin(scheme, found["host"], found["port"], text)


def keys_of(origin: Origin) -> tuple[str, ...]:
    """Return the variables whose keys belong to a host."""
    if origin.is_loopback:
        return _LOCAL_SERVERS
    return _PROVIDERS.get(origin.host, ()) if (origin.scheme, origin.port) == ("https", 443) else ()


def _origin(scheme: str, host: str, port: str | None, text: str) -> Origin:
    number = int(port) if port else _PORTS[scheme]
    if not 0 < number < 65_536:
        raise TaskError(f"{text[:200]!r} has a wrong port; give one from 1 to 65535")
    return Origin(scheme, host.lower(), number)
