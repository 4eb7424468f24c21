"""What every test of the trainer has."""

from collections.abc import Iterator

import pytest
from finetune_trainer import reload_check

from tests.trainer.warm import run_warm


@pytest.fixture(scope="session", autouse=True)
def warm_reloads() -> Iterator[None]:
    """Runs of this process check their artifacts in forks of a warm one; those that are commands do it themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reload_check, "run_fresh", run_warm)
        yield
