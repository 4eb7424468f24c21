"""`spec.tracking`: each sink gets the curve and the scores, none is imported unasked, and none can fail a run."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_api.findings import Comparison, EvaluationStatus
from finetune_api.names import Stage
from finetune_api.output import Sink
from finetune_api.progress import HistoryRow, Metrics
from finetune_api.run import RunResult, RunSpec
from finetune_trainer.store import FileStore
from finetune_trainer.tracking import Numbers, Tracker, Tracking, settings_of

from tests.trainer.runs import a_run
from tests.trainer.stories import a_story_run

ROWS = [
    (HistoryRow(step=1, epoch=0.5, training_loss=2.0), Metrics(training_loss=2.0, learning_rate=1e-3, grad_norm=0.5)),
    (HistoryRow(step=2, epoch=1.0, validation_loss=1.5), Metrics(training_loss=2.0, validation_loss=1.5)),
]
RESULT = RunResult(stage=Stage.TRAIN, evaluation=EvaluationStatus(rows=4, perplexity=Comparison(base=31.2, tuned=4.1)))


def a_tracked_run(tmp_path: Path, *sinks: str, **tracking: Any) -> RunSpec:
    datasets = [{"name": "d", "uri": "s3://b/d.jsonl"}]
    return a_run(tmp_path, "hf://a/b", datasets, tracking={"sinks": list(sinks), **tracking})


def track(run: RunSpec, **how: Any) -> tuple[dict[str, Path], list[str]]:
    """One tracked run; its files below the run by name, and what was warned about."""
    store, warnings = FileStore(Path(run.output_uri.removeprefix("file://"))), []  # type: tuple[FileStore, list[str]]
    with Tracking(run, store, "0123456789", warnings.append, **how) as tracking:
        for row in ROWS:
            tracking.row(*row)
        tracking.result(RESULT)
    prefix = "tracking/1-01234567/"
    found = {item.key.removeprefix(prefix): store.folder / item.key for item in store.list(prefix)}
    return found, warnings


def test_tensorboard_reads_the_curve_and_the_scores(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    files, warnings = track(a_tracked_run(tmp_path, "tensorboard"))
    assert warnings == []
    events = [Event.FromString(data) for path in files.values() for data in RawEventFileLoader(str(path)).Load()]
    scalars = {(event.step, value.tag): value.simple_value for event in events for value in event.summary.value}
    assert scalars[1, "train/loss"] == 2.0
    assert scalars[1, "train/learning_rate"] == pytest.approx(1e-3)
    assert scalars[2, "eval/loss"] == 1.5
    assert scalars[2, "final/perplexity/tuned"] == pytest.approx(4.1)
    assert (2, "train/learning_rate") not in scalars, "no number is told for a step that it is not of"


def test_mlflow_keeps_parameters_and_metrics_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    files, warnings = track(a_tracked_run(tmp_path, "mlflow"))
    assert warnings == []
    text = {name.rpartition("/")[2] if "metrics" not in name else name.partition("metrics/")[2]: path.read_text()
            for name, path in files.items()}  # fmt: skip
    assert text["train/loss"].split()[1:] == ["2.0", "1"]
    assert text["final/perplexity/base"].split()[1:] == ["31.2", "2"]
    assert text["hyperparameters.optimizer"] == "adamw"


def test_wandb_without_a_key_writes_an_offline_run(tmp_path: Path) -> None:
    files, warnings = track(a_tracked_run(tmp_path, "wandb"))
    assert warnings == []
    runs = [path for name, path in files.items() if name.endswith(".wandb")]
    assert len(runs) == 1
    data = runs[0].read_bytes()
    assert b"train/loss" in data
    assert b"final/perplexity/tuned" in data


class Refuses:
    """A library whose n-th call fails."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def log(self, step: int, numbers: Numbers) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise ConnectionError("the server\nis away")

    def close(self) -> None:
        self.log(0, {})


def opening(tracker: Tracker) -> Callable[..., Tracker]:
    return lambda sink, spec, folder: tracker


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_sink_that_fails_warns_once_and_the_others_go_on(tmp_path: Path, calls: int) -> None:
    def opened(sink: Sink, spec: RunSpec, folder: Path) -> Tracker:
        return Refuses(calls) if sink is Sink.WANDB else kept

    kept = Refuses(10)
    _, warnings = track(a_tracked_run(tmp_path, "wandb", "mlflow"), opened=opened)
    assert warnings == ["tracking: wandb failed and gets nothing more: ConnectionError: the server is away"]
    assert kept.calls == 10 - 4, "two rows, the scores, and the end"


def test_a_sink_that_cannot_be_opened_warns_once(tmp_path: Path) -> None:
    def opened(sink: Sink, spec: RunSpec, folder: Path) -> Tracker:
        raise ImportError("no such library")

    _, warnings = track(a_tracked_run(tmp_path, "mlflow"), opened=opened)
    assert warnings == ["tracking: mlflow failed and gets nothing more: ImportError: no such library"]


def test_a_sink_that_hangs_does_not_hold_the_run_up(tmp_path: Path) -> None:
    released = threading.Event()

    class Hangs(Refuses):
        def log(self, step: int, numbers: Numbers) -> None:
            released.wait(60)

    _, warnings = track(a_tracked_run(tmp_path, "mlflow"), opened=opening(Hangs(0)), close_seconds=0.2)
    released.set()
    assert warnings == ["tracking: mlflow has not finished after 0.2 s and is left behind"]


def test_files_go_to_the_store_also_when_the_run_fails(tmp_path: Path) -> None:
    run = a_tracked_run(tmp_path, "tensorboard")
    store = FileStore(tmp_path / "out")
    tracking = Tracking(run, store, "0123456789", print)

    def fails() -> None:
        with tracking:
            tracking.row(*ROWS[0])
            raise ValueError("diverged")

    with pytest.raises(ValueError, match="diverged"):
        fails()
    assert len(store.list("tracking/1-01234567/tensorboard/")) == 1


def test_what_people_compare_runs_by_is_told_flat(tmp_path: Path) -> None:
    settings = settings_of(a_tracked_run(tmp_path))
    assert settings["model"] == "hf://a/b"
    assert settings["hyperparameters.trainBatchSize"] == 8
    assert settings["method.type"] == "lora"


def test_a_run_imports_neither_trackers_nor_bitsandbytes_unless_it_asks_for_them(tmp_path: Path) -> None:
    """Seconds of every start, and hundreds of MiB."""
    code = """
import signal, sys
from finetune_trainer.__main__ import main
from finetune_trainer.termination import StopSignal

signal.signal(signal.SIGTERM, StopSignal())
codes = [int(main([stage, "--run", sys.argv[1]])) for stage in ("prepare", "train")]
unasked = ("bitsandbytes", "mlflow", "tensorboard", "wandb")
print(*codes, [name for name in unasked if sys.modules.get(name)])
"""
    run = a_story_run(tmp_path).model_copy(update={"result_file": str(tmp_path / "result.json"), "threads": 1})
    path = tmp_path / "run.json"
    path.write_text(run.model_dump_json(by_alias=True, exclude_none=True))
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "0 0 []\n"
