"""What the project says about itself is true: the page for contributors, the list of dependencies, the layout."""

import operator
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def diff_lines() -> list[tuple[str, str]]:
    """File and line of everything that the diff in CONTRIBUTING.md shows as being there afterwards."""
    block = re.search(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert block
    found, file = [], ""
    for line in block.group(1).splitlines():
        if line.startswith("+++ b/"):
            file = line.removeprefix("+++ b/")
        elif line.startswith("@@ "):
            found.append((file, line.removeprefix("@@ ")))
        elif not line.startswith("---"):
            found.append((file, line[1:]))
    return found


@pytest.mark.parametrize(("file", "line"), diff_lines())
def test_the_diff_that_shows_what_a_field_costs_is_the_code_of_today(file: str, line: str) -> None:
    assert line in (ROOT / file).read_text().splitlines()


def test_every_path_that_the_contributors_page_names_exists() -> None:
    named = re.findall(r"`((?:crds|operator|trainer-image|tests|helm|docs|requirements)/[\w./-]+)`",
                       (ROOT / "CONTRIBUTING.md").read_text())  # fmt: skip
    assert len(named) > 8
    assert [path for path in named if not (ROOT / path).exists()] == []


def wanted_packages() -> list[str]:
    lines = [line for path in (ROOT / "requirements").glob("*.in") for line in path.read_text().splitlines()]
    return sorted({re.split(r"[\[>=<]", line)[0] for line in lines if line and not line.startswith(("-", "#"))})


@pytest.mark.parametrize("package", wanted_packages())
def test_every_dependency_says_what_it_is_for(package: str) -> None:
    rows = [line for line in (ROOT / "docs" / "dependencies.md").read_text().splitlines() if line.startswith("| ")]
    assert any(package.lower() in re.split(r", | \| ", row.removeprefix("| ").lower()) for row in rows)


@pytest.mark.parametrize("lock", ["operator/requirements.txt", "trainer-image/requirements.txt",
                                  "requirements/dev.txt", "requirements/bench.txt"])  # fmt: skip
def test_pinned_versions_have_hashes_and_name_no_registry(lock: str) -> None:
    text = (ROOT / lock).read_text()
    pins = re.findall(r"^[\w.\[\]-]+==.*\\\n +--hash=sha256:", text, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^[\w.\[\]-]+==", text, re.MULTILINE)) > 10
    assert "://" not in text


def test_the_standard_librarys_operator_is_not_hidden_by_our_folder() -> None:
    assert Path(operator.__file__).parent != ROOT / "operator"
    assert not (ROOT / "operator" / "__init__.py").exists()
