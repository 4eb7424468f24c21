"""The price table: which GPUs there are, how large and how fast, and what things cost. Part of the settings. Pure."""

from decimal import Decimal
from typing import Annotated, Self

from finetune_api.base import Model
from finetune_api.fields import Quantity
from pydantic import BeforeValidator, ConfigDict, Field, model_validator


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


Price = Annotated[
    Annotated[Decimal, Field(ge=0, le=10**9)] | None, BeforeValidator(_empty_is_none), Field(default=None)
]
"""Money as a decimal, such as `"2.50"`; empty = no price."""

Labels = Annotated[dict[str, str], Field(max_length=16)]


class GpuKind(Model):
    """One kind of GPU."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=63)]
    """What to call it in status and messages."""
    node_labels: Labels = Field(default_factory=dict)
    """Labels by which its nodes are known; empty = every node that no earlier entry names."""
    memory: Annotated[Quantity | None, BeforeValidator(_empty_is_none)] = None
    """Memory of one GPU; empty = what the nodes' label `nvidia.com/gpu.memory` says."""
    price_per_hour: Price
    """Of one GPU for an hour."""
    price_per_million_tokens: Price
    """Of a million trained tokens, in place of a price per hour."""
    tokens_per_second: Annotated[Decimal | None, Field(gt=0), BeforeValidator(_empty_is_none)] = None
    """Tokens that one GPU trains in a second; empty = what prepare estimates."""

    @model_validator(mode="after")
    def _one_price(self) -> Self:
        if self.price_per_hour is not None and self.price_per_million_tokens is not None:
            raise ValueError(f"GPU {self.name} has both pricePerHour and pricePerMillionTokens: leave one empty")
        return self

    @property
    def is_priced(self) -> bool:
        """Whether training on it has a price."""
        return self.price_per_hour is not None or self.price_per_million_tokens is not None


class Prices(Model):
    """What is the same for all GPUs."""

    model_config = ConfigDict(extra="forbid")

    currency: Annotated[str, Field(pattern=r"^([A-Z]{3})?$")] = ""
    """Currency of all prices, an ISO 4217 code; empty = there are no prices."""
    overhead_percent: Annotated[Decimal, Field(ge=0, le=1000)] = Decimal(0)
    """Added to what the GPUs cost."""
    inference_per_million_tokens: Price
    """Of a million tokens of inference."""
    hosting_per_hour: Price
    """Of serving one model for an hour."""
    storage_per_gib_month: Price
    """Of keeping a GiB for a month."""

    @property
    def given(self) -> list[Decimal]:
        """The prices that are set."""
        found = (self.inference_per_million_tokens, self.hosting_per_hour, self.storage_per_gib_month)
        return [price for price in found if price is not None]
