"""Kinds of fields that several parts of spec and status have: quantities, names, references, counts, times."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from finetune_api.base import Model, cel, rules
from finetune_api.words import one_line

NO_DOT_DOT = cel("!self.split('/').exists(part, part == '..')", "a URI may not contain '..' as a path part")


LARGEST_COUNT = 2**53 - 1
"""Largest integer that every reader of JSON takes for what it is. Source: RFC 8259, section 6."""

Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
"""How many; what a pod tells beyond the bound would make the whole status unwritable."""

NotNegative = Annotated[float, Field(ge=0, le=LARGEST_COUNT)]
"""A number that sums and prices are made from."""


def _in_utc(moment: datetime) -> datetime:
    """One without an offset is in UTC: no two could be compared else, and the API server takes none without."""
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError as error:
        raise ValueError("in UTC it is before year 1 or after year 9999") from error


Measured = Annotated[float, AfterValidator(lambda value: float(f"{value:.6g}"))]
"""A measured number, to 6 significant digits: more would be noise in a table."""

Uri = Annotated[str, Field(max_length=1024, pattern=r"^[ -~]*$")]
"""Where something lies, in characters that a terminal may show."""

Line = Annotated[str, AfterValidator(one_line)]
"""Text of a pod that a terminal may show."""

Instant = Annotated[datetime, AfterValidator(_in_utc)]
"""A moment, in UTC."""

IS_POSITIVE = "type(self) == int ? self >= 1 : self.matches('[1-9]')"
"""Of a quantity, which is a number or a text."""

Quantity = Annotated[
    str,
    BeforeValidator(str),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$",
            "maxLength": 32,
            **rules(cel(IS_POSITIVE, "a quantity must be more than 0: as a limit, 0 would be none")),
        }
    ),
]
"""A Kubernetes quantity such as `4`, `500m` or `32Gi`."""


NAME_PATTERN = r"^[a-z][a-z0-9-]*$"
"""What the name of a Finetune is made of: no dots, since the names of its pods have to be DNS labels."""


CPU_PATTERN = r"^([0-9]+(\.[0-9]{1,3})?|[0-9]+m)$"


Cpu = Annotated[
    str,
    BeforeValidator(str),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": CPU_PATTERN,
            "maxLength": 16,
            **rules(cel(IS_POSITIVE, "trainer.cpu must be at least 1, or a part such as 500m")),
        }
    ),
]
"""CPUs: `4`, `1.5` or `1500m`."""


_DNS_SUBDOMAIN = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"


OBJECT_NAME_PATTERN = f"^{_DNS_SUBDOMAIN}$"
"""What the name of an object may be: a DNS subdomain, and so never that of one in another namespace."""


CLASS_NAME_PATTERN = f"^({_DNS_SUBDOMAIN})?$"


KEYS_HAVE_A_SIZE = cel("self.all(key, key.size() > 0 && key.size() <= 253)", "a key has 1 to 253 characters")


Name = Annotated[str, Field(min_length=1, max_length=253)]


Template = Annotated[str, Field(min_length=1, max_length=16384)]


ColumnName = Annotated[str, Field(min_length=1, max_length=253)]


class SecretRef(Model):
    """A Secret in the namespace of the Finetune. The operator never reads it; the pod that needs it mounts it."""

    name: Name = Field(json_schema_extra={"pattern": OBJECT_NAME_PATTERN})
    """Name of the Secret."""


LABEL_VALUE_PATTERN = r"^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$"


LabelValue = Annotated[str, Field(max_length=63, json_schema_extra={"pattern": LABEL_VALUE_PATTERN})]


LABEL_KEY_PATTERN = rf"^({_DNS_SUBDOMAIN}/)?[A-Za-z0-9]([A-Za-z0-9._-]{{0,61}}[A-Za-z0-9])?$"
"""What the key of a label, an annotation or a taint may be. Source: Kubernetes, "Labels and Selectors"."""
