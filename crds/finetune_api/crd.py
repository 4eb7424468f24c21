"""Models to CustomResourceDefinition: pydantic's JSON schema, brought into the structural dialect of the API server.

`$ref`s are inlined, `X | None` becomes `X`, titles and null defaults go. Two groups of rules are made here rather than
written down field by field: what is immutable, and which rules run at creation only.
Source: Kubernetes, "Specifying a structural schema".
"""

from collections.abc import Iterator
from typing import Any

from finetune_api import names
from finetune_api.base import cel
from finetune_api.fields import NAME_PATTERN
from finetune_api.resource import CREATION_RULES, MUTABLE_FIELDS, FinetuneSpec
from finetune_api.status import FinetuneStatus

Schema = dict[str, Any]

DROPPED_WORDS = ("title", "$defs", "propertyNames")

PRINT_COLUMNS: list[Schema] = [
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Progress", "type": "integer", "jsonPath": ".status.progress.percent", "description": "Percent of steps"},
    {"name": "Model", "type": "string", "jsonPath": ".spec.model.uri"},
    {"name": "Loss", "type": "number", "jsonPath": ".status.metrics.trainingLoss"},
    {
        "name": "Reason",
        "type": "string",
        "jsonPath": '.status.conditions[?(@.type=="Ready")].reason',
        "priority": 1,
    },
    {
        "name": "Cost",
        "type": "string",
        "jsonPath": ".status.cost.spent",
        "description": "In the currency of the price table",
        "priority": 1,
    },
    {"name": "Artifact", "type": "string", "jsonPath": ".status.artifact.uri", "priority": 1},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]


def custom_resource_definition() -> Schema:
    """The CRD of Finetune, ready to be applied."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.KIND.lower(),
                "shortNames": [names.SHORT_NAME],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": PRINT_COLUMNS,
                    "schema": {"openAPIV3Schema": object_schema()},
                }
            ],
        },
    }


def object_schema() -> Schema:
    """Schema of the whole object."""
    return {
        "type": "object",
        "description": "A fine-tuning run: data, base model and method in; a tested model artifact in S3 out.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec_schema(),
            "status": status_schema(),
        },
        "x-kubernetes-validations": [
            cel(
                f"self.metadata.name.size() <= {names.MAX_NAME_LENGTH}",
                f"metadata.name must be at most {names.MAX_NAME_LENGTH} characters",
            ),
            cel(
                f"self.metadata.name.matches('{NAME_PATTERN}')",
                "metadata.name must start with a letter and hold only a-z, 0-9 and '-'",
            ),
        ],
    }


def spec_schema() -> Schema:
    """Schema of `spec`, with immutability and the rules that run at creation only."""
    schema = structural(FinetuneSpec.model_json_schema(by_alias=True))
    schema["x-kubernetes-validations"] = [
        *(creation_only(rule) for rule in CREATION_RULES),
        *(immutable(field) for field in immutable_fields(schema["properties"])),
    ]
    return schema


def status_schema() -> Schema:
    """Schema of `status`; its default keeps a fresh object from being read as ready."""
    schema = structural(FinetuneStatus.model_json_schema(by_alias=True, mode="validation"))
    return {**without_defaults(schema), "default": {"observedGeneration": -1}}


def creation_only(rule: Schema) -> Schema:
    """The rule, silent on updates: an object that was stored before the rule came must still accept its changes."""
    return rule | {"rule": f"oldSelf.hasValue() || ({rule['rule']})", "optionalOldSelf": True}


def immutable_fields(properties: Schema) -> Iterator[str]:
    """Paths below `spec` that may not change: whole fields, or the other fields of an object with one that may."""
    for name, schema in properties.items():
        if any(path.startswith(f"{name}.") for path in MUTABLE_FIELDS):
            yield from (path for sub in schema["properties"] if (path := f"{name}.{sub}") not in MUTABLE_FIELDS)
        elif name not in MUTABLE_FIELDS:
            yield name


def immutable(field: str) -> Schema:
    """A rule that `spec.<field>` stays as it was created, also as being absent."""
    return cel(
        f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
        f"spec.{field} is immutable (only {', '.join(sorted(MUTABLE_FIELDS))} may change): create another Finetune",
    )


def structural(schema: Schema) -> Schema:
    """A pydantic JSON schema without references, unions with null, titles and null defaults."""
    converted: Schema = _convert(schema, schema.get("$defs", {}))
    return converted


def without_defaults(node: Any) -> Any:
    """The node with no `default` in it: what the operator leaves out of the status is really absent."""
    if isinstance(node, list):
        return [without_defaults(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {key: without_defaults(value) for key, value in node.items() if key != "default"}


def _convert(node: Any, definitions: dict[str, Schema]) -> Any:
    if isinstance(node, list):
        return [_convert(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    return dict(_converted_items(_flattened(node, definitions), definitions))


def _flattened(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """The node with its `$ref` and its union with null replaced by what they stand for; its own words win."""
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        return _merged(_flattened(target, definitions), {k: v for k, v in node.items() if k != "$ref"})
    options = [option for option in node.get("anyOf", []) if option != {"type": "null"}]
    if "anyOf" in node and len(options) == 1:
        return _merged(_flattened(options[0], definitions), {k: v for k, v in node.items() if k != "anyOf"})
    return node


def _merged(target: Schema, own: Schema) -> Schema:
    """`target` overlaid with `own`; the CEL rules of both count."""
    rules = [*target.get("x-kubernetes-validations", []), *own.get("x-kubernetes-validations", [])]
    return {**target, **own, **({"x-kubernetes-validations": rules} if rules else {})}


def _converted_items(node: Schema, definitions: dict[str, Schema]) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if key == "properties":
            yield key, {name: _convert(property_, definitions) for name, property_ in value.items()}
        elif key == "default":
            if value is not None:
                yield key, _without_nulls(value)
        elif key not in DROPPED_WORDS:
            yield key, _convert(value, definitions)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value
