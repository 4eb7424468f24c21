"""The generated CRD keeps to the dialect of the API server, has bounds everywhere, and is fresh."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import yaml
from finetune_api import names
from finetune_api.__main__ import generated_files, main
from finetune_api.crd import custom_resource_definition, object_schema
from finetune_api.resource import MUTABLE_FIELDS, FinetuneSpec


class Node(NamedTuple):
    """One schema of the CRD and the path to it."""

    path: str
    schema: dict[str, Any]


def nodes(path: str, schema: dict[str, Any]) -> Iterator[Node]:
    """The schema and everything below it."""
    yield Node(path, schema)
    for name, child in schema.get("properties", {}).items():
        yield from nodes(f"{path}.{name}", child)
    for word, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(schema.get(word), dict):
            yield from nodes(path + mark, schema[word])


WHOLE = object_schema()["properties"]
SPEC, STATUS = list(nodes("spec", WHOLE["spec"])), list(nodes("status", WHOLE["status"]))
REFUSED_WORDS = {
    "$ref", "$defs", "definitions", "title", "examples", "const", "discriminator", "oneOf", "uniqueItems",
    "prefixItems", "propertyNames", "minProperties", "exclusiveMinimum", "exclusiveMaximum",
}  # fmt: skip


def paths(found: Iterator[Node]) -> list[str]:
    return [node.path for node in found]


@pytest.mark.parametrize("word", sorted(REFUSED_WORDS))
def test_no_word_is_used_that_a_structural_schema_may_not_have(word: str) -> None:
    assert paths(node for node in SPEC + STATUS if word in node.schema) == []


def test_unknown_fields_are_pruned_and_not_forbidden() -> None:
    assert paths(node for node in SPEC + STATUS if isinstance(node.schema.get("additionalProperties"), bool)) == []


def test_every_node_has_a_type() -> None:
    typed = ("type", "x-kubernetes-int-or-string")
    assert paths(node for node in SPEC + STATUS if not any(word in node.schema for word in typed)) == []


def test_no_default_is_null() -> None:
    assert paths(node for node in SPEC + STATUS if node.schema.get("default", 0) is None) == []


def test_every_string_has_a_longest_length() -> None:
    strings = (node for node in SPEC + STATUS if node.schema.get("type") == "string")
    assert paths(node for node in strings if not {"maxLength", "enum", "format"} & set(node.schema)) == []


def test_every_list_and_map_has_a_largest_size() -> None:
    lists = (node for node in SPEC + STATUS if node.schema.get("type") == "array" and "maxItems" not in node.schema)
    maps = (n for n in SPEC + STATUS if "additionalProperties" in n.schema and "maxProperties" not in n.schema)
    assert paths(lists) + paths(maps) == []


def test_every_number_that_a_user_gives_has_both_bounds() -> None:
    numbers = (node for node in SPEC if node.schema.get("type") in ("integer", "number"))
    assert paths(node for node in numbers if not {"minimum", "maximum"} <= set(node.schema)) == []


def test_every_integer_is_one_for_every_reader_of_json() -> None:
    integers = (node for node in SPEC + STATUS if node.schema.get("type") == "integer")
    assert paths(node for node in integers if node.schema.get("maximum", 2**53) >= 2**53) == []


def test_every_default_lies_within_its_bounds() -> None:
    def is_outside(schema: dict[str, Any]) -> bool:
        value = schema["default"]
        if "enum" in schema:
            return value not in schema["enum"]
        return not schema.get("minimum", value) <= value <= schema.get("maximum", value)

    scalars = (node for node in SPEC if not isinstance(node.schema.get("default", {}), dict | list))
    assert paths(node for node in scalars if is_outside(node.schema)) == []


def test_every_field_that_a_user_sets_is_explained() -> None:
    named = (node for node in SPEC if not node.path.endswith(("[]", "{}")))
    assert paths(node for node in named if not node.schema.get("description")) == []


def test_every_rule_says_in_words_what_is_wrong() -> None:
    rules = [rule for node in SPEC for rule in node.schema.get("x-kubernetes-validations", [])]
    assert len(rules) > 20
    assert [rule for rule in rules if len(rule["message"].split()) < 4 or "\n" in rule["message"]] == []


def test_every_field_but_the_mutable_ones_is_immutable() -> None:
    messages = [rule["message"] for rule in WHOLE["spec"]["x-kubernetes-validations"]]
    guarded = {field.alias for field in FinetuneSpec.model_fields.values() if any(
        re.match(rf"spec\.{field.alias}[.\w]* is immutable", message) for message in messages
    )}  # fmt: skip
    assert guarded == {field.alias for field in FinetuneSpec.model_fields.values()} - MUTABLE_FIELDS


def test_status_defaults_reach_no_further_than_that_nobody_has_looked() -> None:
    defaults = {node.path: node.schema["default"] for node in STATUS if "default" in node.schema}
    assert defaults == {"status": {"observedGeneration": -1}}


def test_the_crd_is_called_after_the_names_that_all_parts_use() -> None:
    crd = custom_resource_definition()
    assert crd["metadata"]["name"] == f"{names.PLURAL}.{names.GROUP}"
    assert crd["spec"]["names"]["shortNames"] == [names.SHORT_NAME]
    assert [version["name"] for version in crd["spec"]["versions"]] == [names.VERSION]


def test_the_generated_files_are_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_the_written_crd_reads_back_as_the_one_that_was_made() -> None:
    text = next(text for path, text in generated_files().items() if path.name == "finetunes.yaml")
    assert yaml.load(text, yaml.CSafeLoader) == custom_resource_definition()
