"""What several specifications of models have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from ..handlers import Price
from .validation import VARIABLE_NAME

# Strict: "3" is no number, and an unknown key is a mistake.
STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)


class PriceSpec(BaseModel):
    """US dollars for a million tokens."""

    model_config = STRICT

    input_usd: float = Field(ge=0, allow_inf_nan=False)
    output_usd: float = Field(ge=0, allow_inf_nan=False)
    cache_read_usd: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="input that the provider read from its cache"
    )
    cache_write_usd: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="input that the provider wrote to its cache"
    )

    def price(self) -> Price:
        """Return it as the handlers take it."""
        return Price(self.input_usd, self.output_usd, self.cache_read_usd, self.cache_write_usd)


class EndpointSpec(BaseModel):
    """What all specifications of a model behind an endpoint have."""

    model_config = STRICT

    model: str = Field(min_length=1, description="the model's name at the endpoint")
    api_key_env: str | None = Field(
        default=None,
        pattern=VARIABLE_NAME,
        description="the environment variable that holds the key; none sends no key",
    )
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1, description="tokens in an answer, at most")
    timeout: float = Field(default=120.0, gt=0, description="seconds of silence that end an attempt")
    max_retries: int = Field(default=2, ge=0, le=20)
    max_concurrency: int = Field(default=32, ge=1, le=10_000, description="requests at once")
    window: int | None = Field(default=None, ge=1, description="tokens of a prompt and its answer together")
    price: PriceSpec | None = Field(default=None, description="US dollars for a million tokens")
