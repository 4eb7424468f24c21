"""The base of every model: camelCase outside, snake_case inside, frozen."""

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """A value of the API. Unknown fields are dropped, as the API server drops them."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        use_attribute_docstrings=True,
        extra="ignore",
        allow_inf_nan=False,
    )

    def to_json(self) -> dict[str, Any]:
        """The value as JSON objects with camelCase keys; what is None is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class StrictModel(Model):
    """A message between operator and trainer: an unknown field is an error, since both come from one release."""

    model_config = ConfigDict(extra="forbid")


def cel(rule: str, message: str, field_path: str | None = None) -> dict[str, Any]:
    """One `x-kubernetes-validations` rule; `message` names the field and the limit."""
    entry: dict[str, Any] = {"rule": rule, "message": message}
    return entry | {"fieldPath": field_path} if field_path else entry


def rules(*entries: dict[str, Any], **schema: Any) -> dict[str, Any]:
    """`json_schema_extra` for a field or a model: CEL rules, and schema words that pydantic has no argument for."""
    return {"x-kubernetes-validations": list(entries), **schema} if entries else schema
