"""A train process that is told to leave, or killed, in the middle: the next attempt ends in the very same artifact."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.names import MANIFEST_FILE, Exit, FailureClass, Stage
from finetune_api.run import RunResult, RunSpec
from finetune_trainer.__main__ import main
from safetensors.torch import load_file

from tests.trainer.stories import a_story_run, tell
from tests.trainer.tiny import a_model_folder

STEPS = 30
HYPERPARAMETERS: dict[str, Any] = {
    "maxSteps": STEPS,
    "learningRate": 1e-2,
    "trainBatchSize": 4,
    "loggingSteps": 1,
    "evalSteps": 7,
    "saveSteps": 4,
}
METHOD = {"type": "lora", "lora": {"dropout": 0.1}}


def a_stoppable_run(folder: Path, model: Path) -> RunSpec:
    training = {"method": METHOD, "hyperparameters": HYPERPARAMETERS, "evaluation": {"metrics": ["perplexity"]}}
    run = a_story_run(folder, model, **training)
    return run.model_copy(update={"threads": 1, "result_file": str(folder / "result.json")})


def written(folder: Path, run: RunSpec) -> Path:
    path = folder / f"run-{run.attempt}.json"
    path.write_text(run.model_dump_json(by_alias=True, exclude_none=True))
    return path


def result_of(folder: Path) -> RunResult:
    return RunResult.model_validate_json((folder / "result.json").read_text())


def artifact_of(folder: Path) -> Path:
    artifact = result_of(folder).artifact
    assert artifact is not None
    return Path(artifact.uri.removeprefix("file://"))


def log_rows(artifact: Path) -> list[dict[str, Any]]:
    """The training log without what the clock decides."""
    clock = ("etaSeconds", "tokensPerSecond", "evaluationSeconds")
    lines = (artifact / "training_log.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in clock} for line in lines]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_model_folder(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The artifact of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    path = written(folder, a_stoppable_run(folder, model))
    for stage in Stage:
        assert main([stage.value, "--run", str(path)]) == Exit.OK
    return artifact_of(folder)


def stopped_in_the_middle(folder: Path, run: RunSpec, how: signal.Signals) -> int:
    """Run both stages, and send a signal to the train process after its 9th step; returns its exit code."""
    path = written(folder, run)
    assert main(["prepare", "--run", str(path)]) == Exit.OK
    command = [sys.executable, "-m", "finetune_trainer", "train", "--run", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stderr is not None
    while "step 9/" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(how)
    process.communicate()
    return process.returncode


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_the_next_attempt_publishes_what_an_unbroken_run_does(
    tmp_path: Path, model: Path, unbroken: Path, how: signal.Signals
) -> None:
    run = a_stoppable_run(tmp_path, model)
    code = stopped_in_the_middle(tmp_path, run, how)
    if how is signal.SIGTERM:
        left = result_of(tmp_path)
        assert code == Exit.TERMINATED
        assert left.failure is not None
        assert left.failure.failure_class is FailureClass.PREEMPTED
        assert left.checkpoint is not None
        assert 9 <= left.checkpoint.step < STEPS
        assert (Path(left.checkpoint.uri.removeprefix("file://")) / MANIFEST_FILE).exists()
    else:
        assert code == -signal.SIGKILL
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()

    again = run.model_copy(update={"attempt": 2})
    assert main(["train", "--run", str(written(tmp_path, again))]) == Exit.OK
    weights = "adapter_model.safetensors"
    assert (artifact_of(tmp_path) / weights).read_bytes() == (unbroken / weights).read_bytes()
    assert log_rows(artifact_of(tmp_path)) == log_rows(unbroken)
    assert [row["step"] for row in log_rows(unbroken)] == list(range(1, STEPS + 1))
    checkpoint, best = result_of(tmp_path).checkpoint, result_of(tmp_path).best
    assert checkpoint is not None
    assert checkpoint.step == STEPS
    assert best is not None
    assert best.step in (7, 14, 21, 28, STEPS)


def test_early_stopping_publishes_the_weights_with_the_lowest_dev_loss(tmp_path: Path, model: Path) -> None:
    """At this rate the dev loss soon rises."""
    early = {"maxSteps": 60, "learningRate": 0.2, "evalSteps": 2, "saveTotalLimit": 1, "earlyStopping": {"patience": 2}}
    story = tell(a_story_run(tmp_path, model, hyperparameters=early, evaluation={"metrics": ["perplexity"]}))
    result = story.result
    assert result.best is not None
    assert result.progress is not None
    assert result.progress.step == result.best.step + 2 * 2 < 60
    (best,) = (tmp_path / "out" / "checkpoints").glob(f"step-{result.best.step}-*")
    saved = load_file(best / "weights-00000.safetensors")
    published = load_file(story.artifact / "adapter_model.safetensors")
    assert len(published) == len(saved)
    for name, weight in published.items():
        own = "model." + name.removeprefix("base_model.model.").replace(".weight", ".default.weight")
        assert torch.equal(weight, saved[own])
