"""Options and fixtures of every test."""

import pytest

pytest_plugins = ["tests.cluster.fixtures", "tests.judge"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-golden` writes what the tests produce over the reviewed files; look at the diff before you commit."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """True when golden files are to be rewritten."""
    return bool(request.config.getoption("--update-golden"))
