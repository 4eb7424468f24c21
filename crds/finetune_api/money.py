"""What a run costs, and what it may cost: the budget in the spec, the cost in the status.

Amounts are decimal strings with 2 places, half up, in the currency of the operator's price table.
"""

from typing import Annotated

from pydantic import Field

from finetune_api.base import Model
from finetune_api.fields import Count, Instant

AMOUNT_PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,2})?$"

Amount = Annotated[str, Field(max_length=32)]
"""Money, such as `1.38`."""


class Budget(Model):
    """What training may cost."""

    limit: str = Field(min_length=1, max_length=15, json_schema_extra={"pattern": AMOUNT_PATTERN})
    """Most that training may cost, all attempts together, such as `"25.00"`, in the price table's currency."""


class HostingCost(Model):
    """What serving the model would cost; the operator itself serves none."""

    per_hour: Amount
    """An hour."""
    per_month: Amount
    """720 hours."""
    current_month: Amount
    """The hours that were left of the UTC month at `asOf`."""


class StorageCost(Model):
    """What keeping the artifact costs."""

    per_gib_month: Amount
    """A GiB for a month."""
    per_month: Amount | None = None
    """The whole artifact for a month, once it is published."""


class CostLedger(Model):
    """What the attempts before the newest one came to, exactly: the amounts shown go on from here."""

    active_seconds: Count = 0
    """`status.activeSeconds` that are in it."""
    step: Count = 0
    """Optimizer step that the newest attempt went on from."""
    spent: Amount = "0"
    """What they cost."""
    lost: Amount = "0"
    """The part of it that no checkpoint kept."""


class CostStatus(Model):
    """What the run costs. Amounts whose price is not known are absent."""

    currency: Annotated[str, Field(max_length=3)] | None = None
    """Currency of all amounts."""
    gpu: Annotated[str, Field(max_length=63)] | None = None
    """Kind of GPU whose price is taken: the entry's name in the operator's price table."""
    estimated: Amount | None = None
    """What training will cost without any interruption, once the data is prepared."""
    spent: Amount | None = None
    """What the train pods of all attempts have cost until `asOf`."""
    lost: Amount | None = None
    """The part of `spent` whose work no checkpoint kept, so that it had to be done again."""
    inference: Amount | None = None
    """What a million tokens of inference cost."""
    hosting: HostingCost | None = None
    """What serving the model would cost."""
    storage: StorageCost | None = None
    """What keeping the artifact costs."""
    as_of: Instant | None = None
    """When the amounts were reckoned: while pods run, not more than a minute or so ago."""
    warning: Annotated[str, Field(max_length=400)] | None = None
    """Why amounts are absent, and what follows."""
    ledger: CostLedger | None = None
    """What earlier attempts came to."""
