"""Every manifest that a reader may copy is a Finetune: the examples, and the YAML blocks of README and docs."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api.names import API_VERSION, KIND, MAX_NAME_LENGTH
from finetune_api.resource import FinetuneSpec
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
YAML_BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.DOTALL | re.MULTILINE)

Object = dict[str, Any]


def documents(path: Path) -> Iterator[Object]:
    """The objects of a manifest, or of a page's YAML blocks that are whole objects."""
    text = path.read_text(encoding="utf-8")
    for block in [text] if path.suffix == ".yaml" else YAML_BLOCK.findall(text):
        if "apiVersion:" in block:
            yield from (found for found in yaml.safe_load_all(block) if found and found.get("kind") == KIND)


FINETUNES = [
    pytest.param(found, id=f"{path.relative_to(ROOT)}:{found['metadata']['name']}")
    for path in [*EXAMPLES, *PAGES]
    for found in documents(path)
]


def strict_schema(schema: Any) -> Any:
    """The CRD's schema as the API server uses it with strict validation: fields that it does not know are errors."""
    if isinstance(schema, list):
        return [strict_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "properties" in schema else {}
    return closed | {key: strict_schema(value) for key, value in schema.items()}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    crd = yaml.safe_load((ROOT / "crds" / "finetunes.yaml").read_text(encoding="utf-8"))
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return Draft202012Validator(strict_schema(spec))


def test_there_are_examples_and_pages_to_check() -> None:
    names = {str(param.id).partition(":")[0] for param in FINETUNES}
    assert {"examples/quickstart/finetune.yaml", "examples/qwen3-0.6b-lora.yaml"} <= names
    assert {"examples/llama-3.1-8b-qlora.yaml", "README.md"} <= names


@pytest.mark.parametrize("finetune", FINETUNES)
def test_an_example_is_a_finetune_with_known_fields_within_bounds(
    finetune: Object, validator: Draft202012Validator
) -> None:
    assert finetune["apiVersion"] == API_VERSION
    assert len(finetune["metadata"]["name"]) <= MAX_NAME_LENGTH
    problems = [
        f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(finetune["spec"])
    ]
    assert problems == []
    FinetuneSpec.model_validate(finetune["spec"])


def test_a_misspelt_field_of_an_example_would_be_noticed(validator: Draft202012Validator) -> None:
    finetune = next(documents(ROOT / "examples" / "quickstart" / "finetune.yaml"))
    finetune["spec"]["hyperparameters"]["learningrate"] = 1
    assert [list(error.path) for error in validator.iter_errors(finetune["spec"])] == [["hyperparameters"]]
