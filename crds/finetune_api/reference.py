"""The documentation page made from the types: every field with type, default, bounds and meaning."""

from collections.abc import Iterator
from typing import Any

from finetune_api.crd import Schema, object_schema

NOTICE = "<!-- Generated from crds/finetune_api by `make generate`. Do not edit. -->\n"


def field_reference() -> str:
    """docs/reference.md: one table for `spec`, one for `status`."""
    schema = object_schema()["properties"]
    return "\n".join(
        [
            NOTICE,
            "# Fields of a Finetune",
            "",
            "`kubectl explain finetune.spec --recursive` shows the same on a cluster.",
            *(line for part in ("spec", "status") for line in _section(part, schema[part])),
        ]
    )


def _section(title: str, schema: Schema) -> list[str]:
    head = ["", f"## {title}", "", "| field | type | default | allowed | meaning |", "|--|--|--|--|--|"]
    rules = dict.fromkeys(f"- {rule['message']}" for rule in _all_rules(schema))
    return [*head, *_rows(title, schema), *(["", "Rules:", "", *rules] if rules else []), ""]


def _rows(path: str, schema: Schema) -> Iterator[str]:
    required = schema.get("required", [])
    for name, node in schema.get("properties", {}).items():
        here = f"{path}.{name}"
        item = node.get("items", {})
        yield f"| `{here}` | {_type(node)} | {_default(node, name in required)} | {_bounds(node)} | {_cell(node)} |"
        yield from _rows(f"{here}[]" if item else here, item or node)


def _type(node: Schema) -> str:
    if node.get("x-kubernetes-int-or-string"):
        return "quantity"
    if node.get("type") == "array":
        return f"list of {_type(node['items'])}"
    if isinstance(node.get("additionalProperties"), dict):
        return f"map of {_type(node['additionalProperties'])}"
    return str(node.get("format") or node.get("type", "object"))


def _default(node: Schema, required: bool) -> str:
    if required:
        return "**required**"
    value = node.get("default")
    return "" if value is None or (isinstance(value, dict) and value) else f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _bounds(node: Schema) -> str:
    if "enum" in node:
        return ", ".join(f"`{word}`" for word in node["enum"])
    words = {"minimum": "≥ {}", "maximum": "≤ {}", "minItems": "≥ {} items", "maxItems": "≤ {} items"}
    words |= {"maxLength": "≤ {} characters", "maxProperties": "≤ {} keys"}
    return ", ".join(
        text.format(f"{node[key]:g}" if node[key] < 1e6 else node[key]) for key, text in words.items() if key in node
    )


def _cell(node: Schema) -> str:
    return " ".join(str(node.get("description", "")).split()).replace("|", "\\|")


def _all_rules(schema: Schema) -> Iterator[Schema]:
    yield from schema.get("x-kubernetes-validations", [])
    for child in schema.get("properties", {}).values():
        yield from _all_rules(child.get("items", child) if child.get("type") == "array" else child)
