"""What the quickstart tells: its live line, its tables, its errors."""

from pathlib import Path

import pytest
import yaml
from finetune_api.sources import Dataset

from examples.quickstart import dates, run, summary
from examples.quickstart.bucket import BUCKET
from examples.quickstart.watch import line
from tests.cluster.s3 import CLUSTER_ENDPOINT

PROGRESS = {"percent": 41, "step": 410, "totalSteps": 1000, "etaSeconds": 34}


def test_the_live_line_tells_phase_percent_loss_and_time_left() -> None:
    told = line({"phase": "Training", "progress": PROGRESS, "metrics": {"trainingLoss": 0.81}})
    assert told.split() == ["Training", "41", "%", "step", "410/1000", "loss", "0.8100", "ETA", "34", "s"]


def test_the_live_line_tells_what_a_stage_that_has_not_started_waits_for() -> None:
    waiting = {"name": "train", "state": "Pending", "message": "0/1 nodes are available: 1 Insufficient cpu."}
    assert line({"phase": "Pending", "stages": [waiting]}).endswith("1 Insufficient cpu.")


def test_the_live_line_of_a_finetune_that_nobody_has_seen_is_pending() -> None:
    assert line({"observedGeneration": -1}) == "Pending"


def test_no_time_is_left_when_all_steps_are_done() -> None:
    assert "ETA" not in line({"phase": "Training", "progress": PROGRESS | {"step": 1000, "etaSeconds": 0}})


def test_an_answer_with_line_breaks_and_control_characters_stays_in_its_cell() -> None:
    told = summary.answers([{"prompt": "Date: x\nISO: ", "base": "\x1b[2J" + "a" * 99, "tuned": "1", "reference": "1"}])
    assert len(told.splitlines()) == 3
    assert "\x1b" not in told
    assert max(map(len, told.splitlines())) < 130


def test_each_metric_is_shown_before_and_after() -> None:
    evaluation = {"perplexity": {"base": 31.25, "tuned": 1.01}, "exactMatch": {"base": 0.0, "tuned": 0.98}}
    head, _, *rows = summary.numbers({"evaluation": evaluation}).splitlines()
    assert head.split() == ["metric", "before", "after"]
    assert [row.split()[-2:] for row in rows] == [["31.25", "1.01"], ["0", "0.98"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["CLUSTER=minikube"], "CLUSTER=minikube is unknown: choose local, current or kind."),
        (["CLUSTER=current", "OPERATOR_IMAGE=", "TRAINER_IMAGE=x"], "OPERATOR_IMAGE=… TRAINER_IMAGE=… S3_IMAGE=…"),
    ],
)
def test_a_wrong_call_is_one_message_that_says_what_to_type(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(arguments) == 1
    assert words in capsys.readouterr().err


def test_the_manifest_speaks_of_the_places_that_the_quickstart_fills() -> None:
    spec = yaml.safe_load(run.FINETUNE.read_text(encoding="utf-8"))["spec"]
    assert spec["storage"]["endpoint"] == CLUSTER_ENDPOINT
    assert spec["model"]["uri"] == f"s3://{BUCKET}/base"
    assert [Dataset.model_validate(item).uri for item in spec["datasets"]] == [f"s3://{BUCKET}/data/train.jsonl"]


def test_another_pretraining_script_is_another_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run.model_hash()
    for name in run.INPUTS:
        (tmp_path / name).write_bytes((run.HERE / name).read_bytes())
    monkeypatch.setattr(run, "HERE", tmp_path)
    assert run.model_hash() == before
    (tmp_path / "base_model.py").write_text("STEPS = 1\n")
    assert run.model_hash() != before


def test_the_rows_are_as_many_as_were_asked_for(tmp_path: Path) -> None:
    dates.write_rows(tmp_path / "train.jsonl", 7)
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 7
