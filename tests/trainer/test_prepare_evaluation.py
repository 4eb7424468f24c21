"""What could not be measured once trained is refused while nobody has asked for a GPU yet."""

from pathlib import Path
from typing import Any

import pytest
from finetune_api.names import FailureClass
from finetune_api.run import RunSpec
from finetune_trainer.errors import RunError
from finetune_trainer.prepare import prepare
from finetune_trainer.store import open_store

from tests.trainer.runs import a_dataset, a_run, some_pairs, write_jsonl
from tests.trainer.tiny import a_model_folder

LABELLED = [{"prompt": "sky?", "completion": "blue"}, {"prompt": "sun?", "completion": "red"}]


def a_judged_run(folder: Path, rows: list[dict[str, str]], role: str = "test", **evaluation: Any) -> RunSpec:
    """Some rows to train on, and `rows` to measure on."""
    train = a_dataset(write_jsonl(folder / "train.jsonl", some_pairs(4)), "train")
    judged = a_dataset(write_jsonl(folder / "judged.jsonl", rows), "judged", role=role)
    return a_run(folder, a_model_folder(folder / "model"), [train, judged], evaluation=evaluation)


def refusal(run: RunSpec) -> RunError:
    with pytest.raises(RunError) as caught:
        prepare(run, open_store(run.output_uri, run.storage), lambda _: None)
    return caught.value


def prepared(run: RunSpec) -> None:
    assert prepare(run, open_store(run.output_uri, run.storage), lambda _: None).data is not None


@pytest.mark.parametrize("role", ["test", "dev"])
def test_a_reference_outside_of_the_labels_is_told_with_dataset_and_line(tmp_path: Path, role: str) -> None:
    error = refusal(a_judged_run(tmp_path, LABELLED, role, metrics=["macroF1"], labels=["blue", "green"]))
    assert (error.failure_class, error.reason) == (FailureClass.INVALID_DATA, "LabelUnknown")
    assert error.message.startswith(f"dataset 'judged', file://{tmp_path}/judged.jsonl, line 2: the reference is 'red'")


def test_references_among_the_labels_pass_and_train_rows_need_none(tmp_path: Path) -> None:
    prepared(a_judged_run(tmp_path, LABELLED, metrics=["macroF1"], labels=["blue", "red"]))


def test_a_gate_on_answers_needs_a_prompt(tmp_path: Path) -> None:
    gate = {"metric": "exactMatch", "minimum": 0.5}
    run = a_judged_run(tmp_path, LABELLED, metrics=["exactMatch"], gate=gate)
    whole_texts = run.training.model_copy(update={"completion_template": "<<prompt>><<completion>>"})
    error = refusal(run.model_copy(update={"training": whole_texts}))
    assert (error.failure_class, error.reason) == (FailureClass.INVALID_DATA, "GateUnmeasurable")
    prepared(run)


def test_a_gate_needs_a_row_that_is_left(tmp_path: Path) -> None:
    empty = [{"prompt": "sky?", "completion": ""}]
    gate = {"metric": "perplexity", "maximum": 5}
    assert refusal(a_judged_run(tmp_path, empty, gate=gate)).reason == "GateUnmeasurable"
