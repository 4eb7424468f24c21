"""How busy GPUs are: sampled while training goes on, told once the window is full."""

import threading
from pathlib import Path

import pytest
from finetune_api.names import Stage
from finetune_api.progress import HistoryRow, Metrics
from finetune_trainer.log import Log
from finetune_trainer.report import Reporter
from finetune_trainer.utilization import Utilization, read_gpus

from tests.trainer.runs import a_dataset, a_run


def test_the_mean_of_the_window_is_told_once_it_is_full() -> None:
    values = iter([0, 100, 50, 70])
    utilization = Utilization(lambda: next(values), samples=3)
    told = []
    for _ in range(4):
        utilization.sample()
        told.append(utilization.percent)
    assert told == [None, None, 50, 73]


def test_a_thread_asks_as_long_as_training_goes_on() -> None:
    asked = threading.Event()

    def read() -> float:
        asked.set()
        return 7

    utilization = Utilization(read, samples=1)
    with utilization.sampled(interval_seconds=0.001):
        assert asked.wait(timeout=30)
    assert utilization.percent == 7
    assert "utilization" not in {thread.name for thread in threading.enumerate()}


def test_a_driver_that_does_not_tell_is_asked_no_more_and_disturbs_nothing() -> None:
    asked = threading.Semaphore(0)

    def read() -> float:
        asked.release()
        raise OSError("no driver")

    utilization = Utilization(read, samples=1)
    with utilization.sampled(interval_seconds=0.001):
        assert asked.acquire(timeout=30)
    assert not asked.acquire(blocking=False)
    assert utilization.percent is None


def test_a_machine_without_a_gpu_says_so() -> None:
    with pytest.raises(OSError, match=r"\w+: "):
        read_gpus(1)


def test_what_is_known_goes_with_each_point_of_the_curve() -> None:
    run = a_run(Path("unused"), "hf://a/b", [a_dataset(Path("unused"))])
    report = Reporter(run, Stage.TRAIN, Log())
    heard: list[Metrics] = []
    report.follow(lambda row, metrics: heard.append(metrics))
    report.row(HistoryRow(step=1, epoch=0.1), Metrics(training_loss=1.0))
    report.watch(lambda: 42)
    report.row(HistoryRow(step=2, epoch=0.2), Metrics(training_loss=1.0))
    assert [metrics.gpu_utilization for metrics in heard] == [None, 42]
