"""A pod with several training processes tells one result, and the failure that explains the others."""

import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest
from finetune_api.failures import PEER_LOST
from finetune_api.names import FailureClass, Stage
from finetune_api.progress import CheckpointStatus
from finetune_api.run import RunResult, RunSpec
from finetune_api.status import Failure
from finetune_trainer.errors import RunError, Termination
from finetune_trainer.launch import AGENT_PATIENCE_SECONDS, Death, RankReport, launch, verdict
from pydantic import ValidationError

from tests.trainer.runs import a_run

DONE = RunResult(stage=Stage.TRAIN)


def failed(failure_class: FailureClass, reason: str = "Because", at: float = 10) -> RankReport:
    failure = RunError(failure_class, reason, "rank so-and-so failed").failure()
    return RankReport(at=at, result=RunResult(stage=Stage.TRAIN, failure=failure))


LOST = failed(FailureClass.INFRASTRUCTURE, PEER_LOST, at=9)
STOPPED = failed(FailureClass.PREEMPTED, "Terminated", at=9)
BY_KERNEL = Death(-signal.SIGKILL, 10)


def failure_of(reports: dict[int, RankReport], deaths: dict[int, Death], stopped: bool = False) -> Failure:
    failure = verdict(reports, deaths, 0, stopped).failure
    assert failure is not None
    return failure


@pytest.mark.parametrize("failure_class", [kind for kind in FailureClass if kind is not FailureClass.PREEMPTED])
def test_a_cause_wins_over_lost_peers_and_ranks_told_to_stop(failure_class: FailureClass) -> None:
    found = failure_of({0: LOST, 1: failed(failure_class), 2: STOPPED}, {1: Death(45, 11), 2: Death(143, 9)})
    assert (found.failure_class, found.reason) == (failure_class, "Because")


def test_the_earliest_cause_wins() -> None:
    later, earlier = failed(FailureClass.INFRASTRUCTURE, at=12), failed(FailureClass.DIVERGED, at=11)
    assert failure_of({0: later, 1: earlier}, {}).failure_class is FailureClass.DIVERGED


def test_a_rank_killed_by_9_means_that_memory_was_short() -> None:
    found = failure_of({0: LOST}, {0: Death(43, 10), 1: BY_KERNEL})
    assert found.failure_class is FailureClass.HOST_OUT_OF_MEMORY
    assert "rank 1 was killed by signal 9" in found.message
    assert "trainer.memory" in found.remedy


def test_a_rank_that_the_agent_killed_is_no_sign_of_short_memory() -> None:
    stuck = Death(-signal.SIGKILL, 10 + AGENT_PATIENCE_SECONDS)
    found = failure_of({0: failed(FailureClass.DIVERGED, at=10)}, {0: Death(45, 10), 1: stuck})
    assert found.failure_class is FailureClass.DIVERGED
    assert failure_of({0: LOST}, {0: Death(43, 10), 1: stuck}).reason == PEER_LOST


@pytest.mark.parametrize(("code", "words"), [(-signal.SIGSEGV, "was killed by signal 11"), (7, "exited with code 7")])
def test_a_rank_that_dies_silently_is_named(code: int, words: str) -> None:
    found = failure_of({0: LOST}, {3: Death(code, 10)})
    assert (found.failure_class, found.reason) == (FailureClass.INFRASTRUCTURE, "RankDied")
    assert f"rank 3 {words}" in found.message


def test_ranks_that_only_lost_one_another_are_an_infrastructure_failure() -> None:
    assert failure_of({0: LOST, 1: LOST}, {}).reason == PEER_LOST


def test_the_first_rank_of_the_pod_has_published_whatever_becomes_of_the_others() -> None:
    reports = {2: RankReport(at=20, result=DONE), 3: failed(FailureClass.INFRASTRUCTURE)}
    assert verdict(reports, {3: Death(43, 10)}, first=2, stopped=False) == DONE


@pytest.mark.parametrize("reports", [{}, {0: LOST, 1: failed(FailureClass.INFRASTRUCTURE)}])
def test_a_pod_that_was_told_to_stop_was_preempted(reports: dict[int, RankReport]) -> None:
    assert failure_of(reports, {}, stopped=True) == Termination.failure()


def test_ranks_that_were_all_told_to_stop_were_preempted_too() -> None:
    assert failure_of({0: STOPPED, 1: STOPPED}, {}).failure_class is FailureClass.PREEMPTED


def test_ranks_without_a_word_are_an_infrastructure_failure() -> None:
    assert failure_of({}, {}).reason == "RankDied"


def test_a_failed_run_tells_of_its_newest_checkpoint() -> None:
    saved = CheckpointStatus(step=7, uri="s3://b/step-7", saved_at=datetime(2026, 1, 1, tzinfo=UTC))
    lost = RankReport(at=9, result=LOST.result.model_copy(update={"checkpoint": saved}))
    result = verdict({0: lost}, {1: BY_KERNEL}, 0, stopped=False)
    assert result.failure is not None
    assert (result.failure.failure_class, result.checkpoint) == (FailureClass.HOST_OUT_OF_MEMORY, saved)


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from finetune_api.failures import PEER_LOST
from finetune_api.names import FailureClass
from finetune_api.run import RunResult
from finetune_trainer.errors import RunError
from finetune_trainer.launch import write_report

def tell(failure=None):
    write_report(folder, rank, RunResult(stage="train", failure=failure and failure.failure()))
    os._exit(43 if failure else 0)

rank, folder, story = int(os.environ["RANK"]), Path(sys.argv[-1]), sys.argv[1]
assert (folder / "run.json").exists() and os.environ["WORLD_SIZE"] == "2"
if story == "fine":
    tell()
if rank == 1 and story == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if rank == 1 and story == "diverged":
    tell(RunError(FailureClass.DIVERGED, "NotFinite", "the loss is nan"))
signal.signal(signal.SIGTERM, lambda *_: tell(RunError(FailureClass.INFRASTRUCTURE, PEER_LOST, "gloo")))
time.sleep(60)
"""


def told(tmp_path: Path, story: str) -> RunResult:
    """What a pod of two ranks says that act out a story."""
    program = tmp_path / "rank.py"
    program.write_text(PROGRAM)
    run = a_run(tmp_path, "hf://a/b", [{"name": "d", "uri": "s3://b/d"}]).model_copy(update={"processes": 2})
    return launch(run, 0, (str(program), story))


def test_two_ranks_that_end_well_have_the_result_of_the_first(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert told(tmp_path, "fine") == DONE
    assert signal.getsignal(signal.SIGTERM) is before
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(
    ("story", "failure_class"),
    [("killed", FailureClass.HOST_OUT_OF_MEMORY), ("diverged", FailureClass.DIVERGED)],
)
def test_a_real_rank_that_fails_stops_the_other_and_is_the_one_that_is_told(
    tmp_path: Path, story: str, failure_class: FailureClass, capfd: pytest.CaptureFixture[str]
) -> None:
    failure = told(tmp_path, story).failure
    assert failure is not None
    assert failure.failure_class is failure_class
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpus": 2, "processes": 4}, "processes is 4, but there are 2 gpus"),
        ({"rendezvous": "first:29500"}, "is for nodes above 1"),
        ({"nodes": 2, "rendezvous": "first"}, "pattern"),
    ],
)
def test_an_order_for_processes_that_cannot_be_is_refused(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    run = a_run(tmp_path, "hf://a/b", [{"name": "d", "uri": "s3://b/d"}])
    with pytest.raises(ValidationError, match=words):
        RunSpec.model_validate({**run.model_dump(), **changes})
