"""What several specifications of models have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from ..handlers import Price

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
