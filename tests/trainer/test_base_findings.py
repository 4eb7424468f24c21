"""The base is measured once: a further attempt reads what the first one found, unless it would find another thing."""

from dataclasses import replace
from pathlib import Path

import pytest
from finetune_api.metrics import Metric
from finetune_api.names import CHECKPOINTS_FOLDER
from finetune_trainer.base_findings import base_findings
from finetune_trainer.log import Log
from finetune_trainer.measure import Findings
from finetune_trainer.parallel import ALONE
from finetune_trainer.prepare import prepare
from finetune_trainer.run_setup import Setup, set_up
from finetune_trainer.store import open_store

from tests.trainer.stories import a_story_run

FOUND = Findings({Metric.PERPLEXITY: 1 / 3}, ["A", "§"])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    run = a_story_run(tmp_path_factory.mktemp("base"))
    store = open_store(run.output_uri, run.storage)
    resolved = prepare(run, store, Log().say).resolved
    assert resolved is not None
    return set_up(run.model_copy(update={"resolved": resolved}), store, "writer", ALONE)


@pytest.fixture
def setup(prepared: Setup, tmp_path: Path) -> Setup:
    return replace(prepared, store=open_store(f"file://{tmp_path}", prepared.spec.storage))


def asked_again() -> Findings:
    raise AssertionError("the base was asked again")


def test_a_further_attempt_reads_what_the_first_one_found(setup: Setup) -> None:
    base_findings(setup, True, lambda: FOUND)
    resumed = replace(setup, writer="other", spec=setup.spec.model_copy(update={"attempt": 2}))
    assert base_findings(resumed, True, asked_again) == FOUND


@pytest.mark.parametrize("what", ["packing", "settings", "base"])
def test_what_would_change_the_findings_makes_it_ask_again(setup: Setup, what: str) -> None:
    base_findings(setup, True, lambda: FOUND)
    training = setup.spec.training
    asked = training.evaluation.model_copy(update={"rows": 1})
    changed = {
        "packing": (setup, False),
        "settings": (
            replace(
                setup,
                spec=setup.spec.model_copy(update={"training": training.model_copy(update={"evaluation": asked})}),
            ),
            True,
        ),
        "base": (replace(setup, files=replace(setup.files, revision="another")), True),
    }[what]
    other = Findings({}, [])
    assert base_findings(*changed, lambda: other) == other


def test_a_file_that_cannot_be_read_is_measured_again(setup: Setup, tmp_path: Path) -> None:
    base_findings(setup, True, lambda: FOUND)
    (path,) = (tmp_path / CHECKPOINTS_FOLDER).glob("base-*.json")
    path.write_text('{"values": [')
    assert base_findings(setup, True, lambda: FOUND) == FOUND
    assert base_findings(setup, True, asked_again) == FOUND
