"""The training loop: one step after another, told as it goes. Nothing in a step waits for the device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from finetune_api.names import FailureClass
from finetune_api.training import Optimizer

from finetune_trainer.batch import Batch
from finetune_trainer.checkpoint import Checkpoints, Snapshot
from finetune_trainer.curve import Clock, Curve
from finetune_trainer.errors import RunError, Termination
from finetune_trainer.long_rope import rope_border
from finetune_trainer.loop import Loop, Settings
from finetune_trainer.loss import LossModel
from finetune_trainer.optimizer import make_optimizer, trained_by_name
from finetune_trainer.pack import micro_batches, step_rows
from finetune_trainer.parallel import ALONE, Team
from finetune_trainer.prepared import TokenRows
from finetune_trainer.report import Reporter
from finetune_trainer.schedule import make_schedule
from finetune_trainer.termination import StopSignal
from finetune_trainer.trainee import Trainee

Validate = Callable[[Callable[[], None]], float]
"""The loss on the dev rows. It calls its argument between batches, as often on every rank; that may raise."""


def fit(
    model: LossModel,
    train: TokenRows,
    settings: Settings,
    packed: bool,
    device: torch.device,
    validate: Validate,
    report: Reporter,
    checkpoints: Checkpoints | None = None,
    stop: StopSignal | None = None,
    team: Team = ALONE,
) -> Curve:
    """Train `model` in place, from the newest of `checkpoints` on.

    Every rank of `team` goes through the same steps, each with its share of the rows, and sees the same numbers.

    Afterwards the weights are the last ones; with early stopping, which needs checkpoints, the best ones.
    Raises RunError (Diverged) when a loss, a gradient norm or a weight is no number; and Termination, with a checkpoint
    of the newest whole step, once `stop` was told to.
    """
    stop = stop or StopSignal()
    torch.manual_seed(settings.seed + team.rank)
    model.train()
    if settings.optimizer is Optimizer.PAGED_ADAMW8BIT and device.type == "cpu":
        report.log.warn("hyperparameters.optimizer: paging needs a GPU, so pagedAdamw8bit works as adamw8bit here")
    loop = Loop(make_trainee(model, settings, device), settings, team)
    if checkpoints and (snapshot := _newest(checkpoints, team)):
        loop.go_on_from(snapshot, report)
    clock = Clock(first=loop.step)
    steps_per_epoch = -(-len(train) // settings.effective_batch)
    border = rope_border(model.model.config)

    def agree() -> None:
        if team.size > 1:
            stop.check(team.any)

    def measure() -> float:
        # May take longer than a pod has to leave: SIGTERM ends it at once, or between two batches, where ranks agree.
        with clock.stopped(), stop.released() if team.size == 1 else nullcontext():
            return validate(agree)

    with _saved_when_told_to_leave(loop, checkpoints, report, team), stop.held():
        while True:
            if loop.told < loop.step:
                progress = clock.progress(loop.step, settings.total_steps, round(loop.step / steps_per_epoch, 4))
                loop.look(progress, measure, report)
            if checkpoints and loop.is_to_be_saved:
                _save(loop, checkpoints)
            if loop.is_over:
                break
            stop.check(team.any)
            rows = step_rows(len(train), settings.effective_batch, settings.seed, loop.step)
            supervised = train.supervised_in(rows)
            for batch in _share(train, rows, settings, packed, border, team):
                loss = model(batch.to(device))
                (loss / supervised).backward()
                loop.interval.add(loss.detach())
            team.sum_gradients(loop.trainee.parameters.values())
            loop.interval.stepped(supervised, *loop.trainee.step(settings.max_grad_norm))
            clock.tokens += int(train.lengths[rows].sum())
            loop.step += 1
        if checkpoints:
            team.from_first(checkpoints.finish)
    if checkpoints:
        _take_best(loop, checkpoints, report)
    return loop.curve


def _share(
    train: TokenRows, rows: list[int], settings: Settings, packed: bool, border: int | None, team: Team
) -> list[Batch]:
    """This rank's micro-batches of a step."""
    limits = settings.rows_per_batch, packed, settings.tokens_per_batch, border
    return micro_batches(train, rows, *limits, rank=team.rank, size=team.size)


def make_trainee(model: LossModel, settings: Settings, device: torch.device) -> Trainee:
    """The model with its optimizer and schedule, before the first step."""
    parameters = trained_by_name(model)
    rate, decay = settings.learning_rate, settings.weight_decay
    optimizer = make_optimizer(settings.optimizer, parameters.values(), rate, decay)
    schedule = make_schedule(settings.scheduler, optimizer, settings.total_steps, settings.warmup_steps)
    return Trainee(model, parameters, optimizer, schedule, device)


def _newest(checkpoints: Checkpoints, team: Team) -> Snapshot | None:
    """Where to go on from. Raises RunError (Infrastructure) where a twin wrote while the ranks looked."""
    snapshot = checkpoints.newest()
    steps = team.from_all(snapshot and snapshot.step)
    if len(set(steps)) > 1:
        message = f"the ranks found different newest checkpoints, of steps {steps}"
        raise RunError(FailureClass.INFRASTRUCTURE, "CheckpointsChanging", message)
    return snapshot


def _save(loop: Loop, checkpoints: Checkpoints) -> None:
    """Start to save the newest step, unless it is saved."""
    if not checkpoints.has(loop.step):
        checkpoints.save(loop.snapshot(), loop.patience.best_step)


@contextmanager
def _saved_when_told_to_leave(
    loop: Loop, checkpoints: Checkpoints | None, report: Reporter, team: Team
) -> Iterator[None]:
    """On SIGTERM, the newest step is saved. What hinders that is told, and changes nothing: the pod has to leave."""
    try:
        yield
    except Termination:
        if checkpoints and loop.step:
            try:
                _save(loop, checkpoints)
                checkpoints.finish()
            except RunError as error:
                report.log.warn(f"told to leave, and step {loop.step} could not be saved: {error}")
        if not loop.is_over:
            # All ranks are here, and none leaves before it is saved: whoever starts ranks or pods ends the others then.
            team.from_first(lambda: None)
        raise


def _take_best(loop: Loop, checkpoints: Checkpoints, report: Reporter) -> None:
    """With early stopping the best weights are published, not the last."""
    best = loop.patience.best_step
    if loop.settings.patience is None or best is None or best == loop.step:
        return
    loop.trainee.restore_weights(checkpoints.weights(best))
    report.say(f"the weights of step {best} are taken: of {loop.step} steps it has the lowest dev loss")
