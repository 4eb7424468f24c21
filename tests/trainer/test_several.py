"""A run of several training processes from the command line: one result, and one that says what became of a rank."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_api.names import MANIFEST_FILE, Exit, FailureClass
from finetune_api.run import RunResult, RunSpec
from finetune_trainer.log import Log
from finetune_trainer.prepare import prepare
from finetune_trainer.store import open_store

from tests.trainer.stories import TRAINING, a_story_run, tell

WHOLE = {**TRAINING["hyperparameters"], "learningRate": 1e-3}
"""A rate at which rounding does not grow into another course of training."""

HALF = {**WHOLE, "trainBatchSize": 2}
"""Two processes with these have the effective batch of one with WHOLE."""

ENDLESS = {**HALF, "maxSteps": 1_000_000, "learningRate": 1e-4, "loggingSteps": 1}


def a_prepared_run(folder: Path, hyperparameters: dict[str, object], method: str = "lora") -> RunSpec:
    """A run for two processes, whose data is prepared."""
    run = a_story_run(folder, method={"type": method}, hyperparameters=hyperparameters).model_copy(
        update={"processes": 2, "threads": 2}
    )
    resolved = prepare(run, open_store(run.output_uri, run.storage), Log(only_errors=True).say).resolved
    return run.model_copy(update={"resolved": resolved})


def started(folder: Path, run: RunSpec) -> subprocess.Popen[str]:
    """PID 1 of a training pod."""
    path = folder / "run.json"
    path.write_text(run.model_dump_json(by_alias=True, exclude_none=True))
    command = [sys.executable, "-m", "finetune_trainer", "train", "--run", str(path)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def in_training(folder: Path) -> subprocess.Popen[str]:
    """PID 1 of a pod that would train for ever, and has begun."""
    process = started(folder, a_prepared_run(folder, ENDLESS))
    assert process.stderr is not None
    while "step 1/" not in (line := process.stderr.readline()):
        assert process.poll() is None, line
    return process


def ranks_of(process: subprocess.Popen[str]) -> dict[str, int]:
    """Pids of the training processes, by rank."""
    pids = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    environments = {int(pid): Path(f"/proc/{pid}/environ").read_text().split("\0") for pid in pids}
    return {
        line.removeprefix("RANK="): pid for pid, lines in environments.items() for line in lines if line[:5] == "RANK="
    }


def result_of(process: subprocess.Popen[str]) -> RunResult:
    out, log = process.communicate(timeout=120)
    assert "Traceback" not in log, log
    return RunResult.model_validate_json(out)


def test_two_processes_publish_one_artifact_and_measure_what_one_process_does(tmp_path: Path) -> None:
    """Full, whose weights are shards; an adapter's processes are compared with one in test_parallel.py."""
    run = a_prepared_run(tmp_path, HALF, "full")
    process = started(tmp_path, run)
    found = result_of(process)
    assert process.returncode == Exit.OK
    assert found.artifact is not None
    assert found.evaluation is not None
    assert found.metrics is not None
    assert [path.name for path in (tmp_path / "out" / "artifacts").iterdir()] == [found.artifact.uri.rpartition("/")[2]]
    run = a_story_run(tmp_path / "alone", tmp_path / "model", method={"type": "full"}, hyperparameters=WHOLE)
    alone = tell(run).result
    assert alone.evaluation is not None
    assert alone.metrics is not None
    assert found.progress is not None
    assert found.progress.total_steps == 60
    assert found.evaluation.perplexity is not None
    assert alone.evaluation.perplexity is not None
    assert found.evaluation.perplexity.base == pytest.approx(alone.evaluation.perplexity.base, rel=1e-5)
    assert found.evaluation.perplexity.tuned == pytest.approx(alone.evaluation.perplexity.tuned, rel=2e-2)
    assert found.metrics.validation_loss == pytest.approx(alone.metrics.validation_loss, rel=1e-2)
    assert found.evaluation.generated_rows == alone.evaluation.generated_rows


def test_a_rank_killed_while_training_ends_the_run_as_out_of_memory_and_names_it(tmp_path: Path) -> None:
    process = in_training(tmp_path)
    os.kill(ranks_of(process)["1"], signal.SIGKILL)
    failure = result_of(process).failure
    assert process.returncode == Exit.INFRASTRUCTURE
    assert failure is not None
    assert failure.failure_class is FailureClass.HOST_OUT_OF_MEMORY
    assert "rank 1 was killed by signal 9" in failure.message
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()


def test_sigterm_reaches_every_rank_and_exits_143(tmp_path: Path) -> None:
    process = in_training(tmp_path)
    ranks = ranks_of(process)
    assert sorted(ranks) == ["0", "1"]
    process.send_signal(signal.SIGTERM)
    failure = result_of(process).failure
    assert process.returncode == Exit.TERMINATED
    assert failure is not None
    assert failure.failure_class is FailureClass.PREEMPTED
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
