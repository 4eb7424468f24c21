"""Several training processes: PID 1 becomes torchrun's agent, waits for all ranks, and says what came of them.

torchrun turns every exit code into 1 and knows no failure classes. So each rank leaves a report, and `verdict` picks
the failure that explains the others: not those of ranks that only lost their peer. Loads without torch.
"""

import logging
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from finetune_api.base import StrictModel
from finetune_api.failures import PEER_LOST
from finetune_api.names import FailureClass, Stage
from finetune_api.run import RunResult, RunSpec
from finetune_api.status import Failure

from finetune_trainer.errors import RunError, Termination

RANK_COMMAND = ("-m", "finetune_trainer", "rank", "--folder")
"""What Python runs as one rank."""

RUN_FILE = "run.json"
"""The order, in the folder that the ranks leave their reports in."""

MONITOR_SECONDS = 0.1
"""How often the agent looks at its ranks."""

FAREWELL_SECONDS = 5
"""What is left of the grace period for telling the result, once the ranks have had the rest of it."""

AGENT_PATIENCE_SECONDS = 30
"""So long after the first failure the agent kills what is left. Source: torch.distributed.elastic, `_close`."""


class RankReport(StrictModel):
    """What one rank says at its end."""

    at: float
    """When, in seconds since the epoch."""
    result: RunResult


@dataclass(frozen=True)
class Death:
    """A rank that exited with another code than 0."""

    code: int
    """Exit code; below zero the number of a signal."""
    at: float
    """When the agent saw it, in whole seconds since the epoch."""


def launch(spec: RunSpec, node: int, command: Sequence[str] = RANK_COMMAND) -> RunResult:
    """Run this pod's ranks, `python command… FOLDER` each, to their end, and say what came of them."""
    if spec.nodes > 1 and spec.rendezvous is None:
        message = f"{RUN_FILE}: nodes is {spec.nodes}, and rendezvous does not say where they meet"
        raise RunError(FailureClass.INVALID_CONFIG, "RunFileInvalid", message)
    folder = Path(spec.scratch_directory) / f"ranks-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    try:
        (folder / RUN_FILE).write_text(spec.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
        deaths, stopped = _run_ranks(spec, node, [*command, str(folder)])
        return verdict(_read_reports(folder), deaths, first=node * spec.processes, stopped=stopped)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_report(folder: Path, rank: int, result: RunResult) -> None:
    """Leave what a rank has to say where its agent reads it."""
    report = RankReport(at=time.time(), result=result)
    (folder / f"rank-{rank}.json").write_text(report.model_dump_json(by_alias=True, exclude_none=True))


def verdict(reports: Mapping[int, RankReport], deaths: Mapping[int, Death], first: int, stopped: bool) -> RunResult:
    """What came of a pod's ranks, of which `first` has the lowest number; `stopped`: the pod was told to stop.

    The first rank publishes, so its result counts whatever becomes of the others afterwards. If it failed, it still
    tells of the newest checkpoint, and the failure is the one that explains the others.
    """
    result = reports[first].result if first in reports else RunResult(stage=Stage.TRAIN, failure=_SILENCE)
    if result.failure is None:
        return result
    return result.model_copy(update={"failure": Termination.failure() if stopped else _reason(reports, deaths)})


def _reason(reports: Mapping[int, RankReport], deaths: Mapping[int, Death]) -> Failure:
    """The earliest failure that follows from no other."""
    told = {rank: report.result.failure for rank, report in reports.items() if report.result.failure}
    causes = [(reports[rank].at, failure) for rank, failure in told.items() if not _follows(failure)]
    causes += [(death.at, _silent(rank, death)) for rank, death in _unexplained(reports, deaths).items()]
    if causes:
        return min(causes, key=lambda cause: cause[0])[1]
    lost = [failure for failure in told.values() if failure.reason == PEER_LOST]
    return next(chain(lost, told.values()), _SILENCE)


def _follows(failure: Failure) -> bool:
    """Whether a rank failed only because another did: its peer was gone, or the agent told it to stop."""
    return failure.reason == PEER_LOST or failure.failure_class is FailureClass.PREEMPTED


def _unexplained(reports: Mapping[int, RankReport], deaths: Mapping[int, Death]) -> dict[int, Death]:
    """Ranks that died without a report, but for those that the agent killed itself, some time after the first."""
    first = min((death.at for death in deaths.values()), default=0.0)
    return {
        rank: death
        for rank, death in deaths.items()
        if rank not in reports and death.code != -signal.SIGTERM and death.at - first < AGENT_PATIENCE_SECONDS - 1
    }


def _silent(rank: int, death: Death) -> Failure:
    """The failure of a rank that could not say a word."""
    if death.code == -signal.SIGKILL:
        message = f"rank {rank} was killed by signal 9, as the kernel does where memory is short"
        return RunError(FailureClass.HOST_OUT_OF_MEMORY, "HostOutOfMemory", message).failure()
    how = f"was killed by signal {-death.code}" if death.code < 0 else f"exited with code {death.code}"
    return RunError(FailureClass.INFRASTRUCTURE, "RankDied", f"rank {rank} {how} and left no report").failure()


_SILENCE = RunError(FailureClass.INFRASTRUCTURE, "RankDied", "the training processes left no word").failure()


def _read_reports(folder: Path) -> dict[int, RankReport]:
    paths = {int(path.stem.removeprefix("rank-")): path for path in folder.glob("rank-*.json")}
    return {rank: RankReport.model_validate_json(path.read_bytes()) for rank, path in paths.items()}


def _run_ranks(spec: RunSpec, node: int, command: Sequence[str]) -> tuple[dict[int, Death], bool]:
    """Run the ranks; who died of what, and whether the pod was told to stop meanwhile.

    On SIGTERM the agent passes it on, and waits for the ranks' checkpoint until the grace period is nearly over.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # It would describe every failure in a table of its own, between our lines.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    alone = spec.rendezvous is None
    config = LaunchConfig(
        min_nodes=spec.nodes,
        max_nodes=spec.nodes,
        nproc_per_node=spec.processes,
        run_id=spec.identity.uid,
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint=spec.rendezvous or "localhost:0",
        rdzv_configs={"timeout": spec.meeting_seconds, **({} if alone else {"rank": node})},
        local_addr="localhost" if alone else None,
        max_restarts=0,
        monitor_interval=MONITOR_SECONDS,
        shutdown_timeout=max(1, spec.grace_seconds - FAREWELL_SECONDS),
    )
    ours = signal.getsignal(signal.SIGTERM)
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        return {rank: Death(found.exitcode, found.timestamp) for rank, found in error.failures.items()}, False
    except SignalException:
        return {}, True
    finally:
        signal.signal(signal.SIGTERM, ours)  # The agent leaves its own handler behind.
    return {}, False
