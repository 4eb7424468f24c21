"""`python -m finetune_api [--check]`: writes every file that is generated from the types, or says which are stale."""

import sys
from pathlib import Path
from typing import Any

import yaml

from finetune_api.crd import custom_resource_definition
from finetune_api.reference import field_reference
from finetune_api.states_page import states_page

ROOT = Path(__file__).parents[2]
HEADER = "# Generated from crds/finetune_api by `make generate`. Do not edit.\n"
KEEP = "{{- if .Values.crds.enabled }}\n"


class QuotedStrings(yaml.SafeDumper):
    """Quotes every string, so that text stays text in every YAML parser."""

    def ignore_aliases(self, data: Any) -> bool:
        """Written out each time: anchors are hard to read."""
        return True


QuotedStrings.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def as_yaml(document: dict[str, Any]) -> str:
    """The document in stable order, one key a line."""
    return yaml.dump(document, Dumper=QuotedStrings, sort_keys=False, width=float("inf"))


def chart_crd() -> str:
    """The chart's copy: a template, since Helm never upgrades what lies in a chart's crds/ folder."""
    crd = custom_resource_definition()
    crd["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}
    return f"{HEADER}{KEEP}{as_yaml(crd).replace('{{', '{{ `{{` }}')}{{{{- end }}}}\n"


def generated_files() -> dict[Path, str]:
    """Every generated file and what it should hold."""
    return {
        ROOT / "crds" / "finetunes.yaml": HEADER + as_yaml(custom_resource_definition()),
        ROOT / "helm" / "finetune-operator" / "templates" / "crd.yaml": chart_crd(),
        ROOT / "docs" / "reference.md": field_reference(),
        ROOT / "docs" / "states.md": states_page(sorted((ROOT / "trainer-image" / "finetune_trainer").glob("*.py"))),
    }


def main(arguments: list[str]) -> int:
    """Write the files, or with `--check` name the stale ones; returns the exit code."""
    stale = [path for path, text in generated_files().items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale: run `make generate`", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(generated_files()[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
