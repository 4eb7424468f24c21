"""`python -m finetune_trainer prepare|train --run FILE`: read the order, run the stage, write the result, exit.

`result` reads from S3 what a stage came to, `cleanup` removes what a run wrote; both take the same file.
`generate` and `evaluate` try an artifact out, see `--help`.

The exit code says what kind of failure it was, should the result be lost. The environment is read here alone.
"""

import signal

if __name__ == "__main__":
    # Held back until there is a handler: the kernel drops what reaches the first process of a container before.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

import argparse
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from finetune_api import output
from finetune_api.failures import POLICIES
from finetune_api.names import ENV_LOG_FORMAT, ENV_NODE_RANK, ENV_WRITER_ID, Errand, Exit, FailureClass, Stage
from finetune_api.run import CleanupResult, RunResult, RunRoot, RunSpec
from finetune_api.status import Failure
from finetune_api.training import Quantization
from pydantic import ValidationError
from pydantic.config import ExtraValues

from finetune_trainer.ahead import leave_out_bitsandbytes, model_ahead, needs_bitsandbytes
from finetune_trainer.commands import COMMANDS, add_commands, run_command
from finetune_trainer.errands import cleanup, lost_result
from finetune_trainer.errors import RunError, Termination, told
from finetune_trainer.launch import RUN_FILE, launch, write_report
from finetune_trainer.library_errors import is_lost_peer, unexpected_failure
from finetune_trainer.log import Log
from finetune_trainer.quiet import quiet_libraries
from finetune_trainer.reach import guard
from finetune_trainer.reload_check import ReloadCheck
from finetune_trainer.report import Reporter
from finetune_trainer.store import open_store
from finetune_trainer.termination import StopSignal
from finetune_trainer.tracking import Tracking

if TYPE_CHECKING:
    from finetune_trainer.parallel import Team

Order = TypeVar("Order", bound=RunRoot)

os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# Of packed batches hardly two are alike: blocks of fixed size would leave gaps that no later tensor fits.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
# MLflow's files are in maintenance; a database, which it wants instead, could not be put into S3 as it is.
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    guard()
    log = Log(as_json=os.environ.get(ENV_LOG_FORMAT, "").lower() == "json")
    try:
        if _is_own_process():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if parsed.command == "reload":
            return _reload(Path(parsed.check))
        if parsed.command in COMMANDS:
            return _tried(parsed, log)
        if parsed.command == "rank":
            return run_rank(Path(parsed.folder), log)
        if parsed.command in set(Errand):
            return run_errand(parsed, read_order(Path(parsed.run), RunRoot), log)
        return run_stage(Stage(parsed.command), read_run(Path(parsed.run)), log)
    except RunError as error:
        log.warn(told(error.failure()))
        return _exit_code(error.failure())
    except Termination:
        log.warn("the pod was told to stop (SIGTERM) before it began")
        return Exit.TERMINATED


def read_run(path: Path) -> RunSpec:
    """The order of a stage in a file. Raises RunError as `read_order` does, and for a field that there is not: no API
    server has refused a setting that would do nothing."""
    return read_order(path, RunSpec, extra="forbid")


def read_order(path: Path, kind: type[Order], extra: ExtraValues | None = None) -> Order:
    """The order in a file. Raises RunError (InvalidConfig) with the first thing that is wrong in it."""
    try:
        return kind.model_validate_json(path.read_bytes(), extra=extra)
    except OSError as error:
        raise _bad_run(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise _bad_run(f"{path}: {where}: {first['msg']}{more}") from error


def run_stage(stage: Stage, spec: RunSpec, log: Log) -> int:
    """Run a stage, and tell its result to whoever asked: the result file, and the operator.

    Of several pods the first speaks for all: the others only leave their result where their own kubelet reads it.
    """
    spec = _untold(spec) if _node() else spec
    with Reporter(spec, stage, log) as report:
        result, code = _outcome(stage, lambda: _work(stage, spec, report), report)
        if result.failure:
            log.warn(told(result.failure))
        _write_result(spec, result, log)
        report.finish(result, **({"tries": 1} if code == Exit.TERMINATED else {}))
    return code


def run_errand(parsed: argparse.Namespace, root: RunRoot, log: Log) -> int:
    """Run an errand, and write its answer."""
    failure = None
    try:
        answer = _errand(parsed, root, log)
    except RunError as error:
        failure = error.failure()
    except Exception as error:  # noqa: BLE001 (whatever else it is must be told to the operator)
        log.unexpected(error)
        failure = unexpected_failure(error)
    if failure:
        log.warn(told(failure))
        is_cleanup = parsed.command == Errand.CLEANUP
        answer = CleanupResult(failure=failure) if is_cleanup else _failed(Stage(parsed.stage), failure)
    _write_result(root, answer, log)
    return _exit_code(failure) if failure else Exit.OK


def _errand(parsed: argparse.Namespace, root: RunRoot, log: Log) -> RunResult | CleanupResult:
    store = open_store(root.output_uri, root.storage)
    if parsed.command == Errand.CLEANUP:
        return cleanup(root, store, log.say)
    return lost_result(root, store, Stage(parsed.stage))


def run_rank(folder: Path, log: Log) -> int:
    """Be one of several training processes: torchrun's agent says which, and reads the report below `folder`."""
    rank, spec = int(os.environ["RANK"]), read_run(folder / RUN_FILE)
    own = spec if rank == 0 else _untold(spec)
    with Reporter(own, Stage.TRAIN, log if rank == 0 else log.muted()) as report:
        result, code = _outcome(Stage.TRAIN, lambda: _train_in_team(rank, own, report), report)
        write_report(folder, rank, result)
    return code


def _work(stage: Stage, spec: RunSpec, report: Reporter) -> RunResult:
    """Import late: prepare needs little of what train needs, and a bad run file needs nothing."""
    _leave_out_unused(spec)
    if stage is Stage.PREPARE:
        from finetune_trainer.prepare import prepare

        return prepare(spec, open_store(spec.output_uri, spec.storage), report.say)
    if spec.devices > 1:
        return launch(spec, _node())
    return _train(spec, report)


def _leave_out_unused(spec: RunSpec) -> None:
    if _is_own_process() and not needs_bitsandbytes(spec.training):
        leave_out_bitsandbytes()


def _node() -> int:
    """Which pod of a gang this is; 0 where it is alone."""
    return int(os.environ.get(ENV_NODE_RANK, 0))


def _untold(spec: RunSpec) -> RunSpec:
    """The order of a rank, or a pod, whose progress another one tells."""
    training = spec.training.model_copy(update={"tracking": output.Tracking()})
    return spec.model_copy(update={"report": None, "training": training})


def _train_in_team(rank: int, spec: RunSpec, report: Reporter) -> RunResult:
    _leave_out_unused(spec)
    from finetune_trainer.compute import require_gpu
    from finetune_trainer.parallel import joined

    gpu = rank % spec.processes if spec.gpus else None
    if gpu is not None:
        require_gpu(spec.gpus, gpu)  # Before the others are met, who would wait for this one.
    with joined(rank, spec.devices, spec.processes, gpu) as team:
        return _train(spec, report, team)


def _train(spec: RunSpec, report: Reporter, team: "Team | None" = None) -> RunResult:
    store = open_store(spec.output_uri, spec.storage)
    fetched = model_ahead(spec, store) if team is None or team.is_first_of_node else None
    from finetune_trainer.parallel import ALONE
    from finetune_trainer.train import train

    writer = os.environ.get(ENV_WRITER_ID) or uuid.uuid4().hex
    with Tracking(spec, store, writer, report.log.warn) as tracking:
        report.follow(tracking.row)
        result = train(spec, store, writer, report, _stop_signal(), team or ALONE, fetched)
        tracking.result(result)
    return result


def _outcome(stage: Stage, work: Callable[[], RunResult], report: Reporter) -> tuple[RunResult, int]:
    """What came of it: the one place where an exception becomes a failure. SIGTERM is ignored from then on."""
    try:
        try:
            result = work()
        finally:
            _ignore_termination()
    except Termination:
        result = _failed(stage, Termination.failure())
    except RunError as error:
        result = _failed(stage, error.failure())
    except Exception as error:  # noqa: BLE001 (whatever else it is must be told to the operator)
        result = _failed(stage, unexpected_failure(error))
        if not is_lost_peer(error):
            report.log.unexpected(error)
    if result.failure is None:
        return result, Exit.OK
    reached = {name: found for name, found in report.reached.items() if found is not None}
    return result.model_copy(update=reached), _exit_code(result.failure)


def _failed(stage: Stage, failure: Failure) -> RunResult:
    return RunResult(stage=stage, failure=failure)


def _reload(path: Path) -> int:
    check = ReloadCheck.model_validate_json(path.read_bytes())
    if _is_own_process() and check.quantization is Quantization.NONE:
        leave_out_bitsandbytes()
    from finetune_trainer.reload import run_check

    print(run_check(check))
    return Exit.OK


def _tried(parsed: argparse.Namespace, log: Log) -> int:
    try:
        run_command(parsed, log)
    except RunError:
        raise
    except Exception as error:  # noqa: BLE001 (its class makes the exit code)
        log.unexpected(error)
        return _exit_code(unexpected_failure(error))
    return Exit.OK


def _write_result(root: RunRoot, result: RunResult | CleanupResult, log: Log) -> None:
    """A result that cannot be written is told in the log: it is reported all the same, and the exit code says most."""
    try:
        message = result.to_message()
        if root.result_file is None:
            print(message, flush=True)
        else:
            Path(root.result_file).write_text(message, encoding="utf-8")
    except Exception as error:  # noqa: BLE001 (whatever stands in the way, the stage is over)
        log.warn(f"the result cannot be written: {type(error).__name__}: {error}")


def _exit_code(failure: Failure) -> int:
    code = POLICIES[failure.failure_class].exit_code
    return Exit.INFRASTRUCTURE if code is None else code


def _bad_run(message: str) -> RunError:
    remedy = "Write it as finetune_api.run.RunSpec says."
    return RunError(FailureClass.INVALID_CONFIG, "RunFileInvalid", message, remedy)


def _stop_signal() -> StopSignal | None:
    """The handler of SIGTERM; None where main() is a call of somebody else's."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler if isinstance(handler, StopSignal) else None


def _is_own_process() -> bool:
    """Whether nobody else's code runs in this process."""
    return _stop_signal() is not None


def _ignore_termination() -> None:
    """The outcome is known and only has to be told, which takes seconds."""
    if _is_own_process():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for stage in Stage:
        command = commands.add_parser(stage.value, help=f"run the {stage.value} stage")
        command.add_argument("--run", required=True, metavar="FILE", help="the order, run.json")
    result = commands.add_parser(Errand.RESULT, help="read from the store what a stage came to")
    result.add_argument("--run", required=True, metavar="FILE", help="the order of the stage, or its root alone")
    result.add_argument("--stage", required=True, choices=list(Stage), help="which stage")
    clean = commands.add_parser(Errand.CLEANUP, help="remove everything that a run wrote")
    clean.add_argument("--run", required=True, metavar="FILE", help="an order of the run, or its root alone")
    rank = commands.add_parser("rank", help="be one of several training processes; torchrun's agent calls it")
    rank.add_argument("--folder", required=True, metavar="FOLDER", help="the order, and where reports go")
    reload = commands.add_parser("reload", help="compare a written artifact with what was trained")
    reload.add_argument("--check", required=True, metavar="FILE", help="what to load and to find")
    add_commands(commands)
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, StopSignal())
    quiet_libraries()
    code = main()
    if code == Exit.TERMINATED:
        # The end of the grace period is near, and a download that nobody needs any more may be under way in a thread.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
