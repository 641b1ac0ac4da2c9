"""Models of a provider's own SDK, as a task file specifies them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from ..handlers import AnthropicHandler, GeminiHandler, ModelHandler
from ..handlers.anthropic import ANTHROPIC
from ..handlers.gemini import GEMINI
from .errors import TaskError
from .model_presets import NO_KEY
from .spec_fields import EndpointSpec
from .trust import UNBOUND, Permissions
from .trust.permissions import KeyNames

Role = Literal["supervisor", "worker"]


class NativeSpec(EndpointSpec):
    """What both have."""

    default_url: ClassVar[str]
    handler_class: ClassVar[type[AnthropicHandler | GeminiHandler]]

    base_url: str | None = Field(default=None, description="the endpoint; the provider's by default")

    def check(self, role: str, folder: Path, permissions: Permissions) -> None:
        """Check that the key may go to the endpoint."""
        self.endpoint(role, permissions)

    def build(
        self, role: Role, folder: Path, worker_ctx_k: int, permissions: Permissions = UNBOUND
    ) -> ModelHandler:
        """Return the handler."""
        url, keys = self.endpoint(role, permissions)
        price = None if self.price is None else self.price.price()
        fields: dict[str, Any] = self.model_dump(exclude={"handler", "price", "base_url", "api_key_env"})
        try:
            return self.handler_class(base_url=url, api_key_env=keys, price=price, **fields)
        except ValueError as error:
            raise TaskError(f"{role}: {error}") from error

    def endpoint(self, role: str, permissions: Permissions) -> tuple[str, KeyNames]:
        """Return the URL, and the variable of the key that may be sent there.

        Raises:
            TaskError: the key is not permitted.
        """
        # No variable moves it: a .env file must not send a key elsewhere.
        url = self.base_url or self.default_url
        if self.api_key_env == NO_KEY:
            return url, {url: None}
        name = f"{role}.base_url" if self.api_key_env is None else f"{role}.api_key_env"
        return url, permissions.keys([url], self.api_key_env, name)


class AnthropicSpec(NativeSpec):
    """A model of Anthropic, through its SDK (extra ``anthropic``)."""

    default_url = ANTHROPIC.url
    handler_class = AnthropicHandler

    handler: Literal["anthropic"]
    thinking: int | Literal["adaptive", "off"] | None = Field(
        default=None, description="tokens for thinking, at least 1024; or adaptive, or off"
    )
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="how much the model works on an answer"
    )
    prompt_cache: bool = Field(
        default=True, description="whether the start of a long conversation is cached at the provider"
    )


class GeminiSpec(NativeSpec):
    """A Gemini model, through Google's SDK (extra ``gemini``)."""

    default_url = GEMINI.url
    handler_class = GeminiHandler

    handler: Literal["gemini"]
    thinking: int | Literal["adaptive", "off"] | None = Field(
        default=None, description="tokens for thinking; or adaptive, or off"
    )
    effort: Literal["minimal", "low", "medium", "high"] | None = Field(
        default=None, description="the level of thinking; newer models take it in place of tokens"
    )
