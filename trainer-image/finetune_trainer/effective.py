"""The values in force: defaults by method, the model's limit, steps in all and of warmup. Pure, in exact decimals."""

from decimal import ROUND_CEILING, Decimal

from finetune_api.findings import EarlyStoppingStatus, EffectiveHyperparameters
from finetune_api.names import FailureClass
from finetune_api.resource import TrainingSpec
from finetune_api.training import Hyperparameters, MethodType, Scheduler

from finetune_trainer.errors import RunError

LEARNING_RATES = {MethodType.LORA: 2e-4, MethodType.FULL: 1e-5}
"""Default peak rate by method."""

DEFAULT_SEQUENCE_LENGTH = 2048


def sequence_length(given: int | None, position_limit: int | None) -> int:
    """Longest row in tokens. Raises RunError (InvalidConfig) above the model's limit; None means it has none."""
    if given is None:
        return min(DEFAULT_SEQUENCE_LENGTH, position_limit or DEFAULT_SEQUENCE_LENGTH)
    if position_limit is not None and given > position_limit:
        raise RunError(
            FailureClass.INVALID_CONFIG,
            "SequenceTooLong",
            f"hyperparameters.maxSeqLength is {given}, above the model's limit of {position_limit}",
            f"Set it to at most {position_limit}.",
        )
    return given


def steps_per_epoch(given: Hyperparameters, train_rows: int, devices: int = 1) -> int:
    """Optimizer steps in which every train row is seen once; the last may have fewer rows."""
    return -(-train_rows // (given.train_batch_size * given.gradient_accumulation_steps * devices))


def total_steps(given: Hyperparameters, epoch_steps: int) -> int:
    """Optimizer steps T: maxSteps, else the epochs' steps rounded up."""
    return given.max_steps or _ceiling(_decimal(given.epochs) * epoch_steps)


def warmup_steps(given: Hyperparameters, total: int) -> int:
    """Steps W with a rising rate. Raises RunError (InvalidConfig, WarmupTooLong) where none would follow them."""
    if given.warmup_steps is not None:
        warmup, field = given.warmup_steps, f"warmupSteps {given.warmup_steps}"
    else:
        ratio = given.warmup_ratio or 0.0
        warmup, field = _ceiling(_decimal(ratio) * total), f"warmupRatio {ratio}"
    if warmup >= total:
        raise RunError(
            FailureClass.INVALID_CONFIG,
            "WarmupTooLong",
            f"hyperparameters.{field} makes {warmup} warmup steps of {total} steps in all: the rate never comes down",
            f"Leave at most {total - 1} warmup steps, or train longer.",
        )
    return warmup


def effective_hyperparameters(
    training: TrainingSpec, train_rows: int, dev_rows: int, max_seq_length: int, devices: int = 1
) -> EffectiveHyperparameters:
    """Every value in force for `train_rows` (at least 1) rows on `devices` devices.

    `eval_steps` is None without dev rows, since nothing is evaluated then. Raises RunError (InvalidConfig):
    WarmupTooLong, NoDevRows.
    """
    given = training.hyperparameters
    if not dev_rows:
        _check_needs_none(given)
    epoch_steps = steps_per_epoch(given, train_rows, devices)
    total = total_steps(given, epoch_steps)
    default_rate = LEARNING_RATES[training.method.type]
    return EffectiveHyperparameters(
        epochs=given.epochs,
        max_steps=given.max_steps,
        total_steps=total,
        learning_rate=default_rate if given.learning_rate is None else given.learning_rate,
        scheduler=given.scheduler,
        warmup_steps=warmup_steps(given, total),
        train_batch_size=given.train_batch_size,
        eval_batch_size=given.eval_batch_size,
        gradient_accumulation_steps=given.gradient_accumulation_steps,
        max_seq_length=max_seq_length,
        overlong=given.overlong,
        packing=given.packing,
        train_on_prompt=given.train_on_prompt,
        weight_decay=given.weight_decay,
        max_grad_norm=given.max_grad_norm,
        optimizer=given.optimizer,
        eval_steps=(given.eval_steps or epoch_steps) if dev_rows else None,
        save_steps=given.save_steps or epoch_steps,
        save_total_limit=given.save_total_limit,
        early_stopping=_early_stopping(given),
        logging_steps=given.logging_steps,
        gradient_checkpointing=given.gradient_checkpointing,
        seed=given.seed,
        devices=devices,
    )


def _check_needs_none(given: Hyperparameters) -> None:
    """Raise RunError where a setting acts on dev rows, of which the template or a limit may have left none."""
    acting = {
        "evalSteps": given.eval_steps > 0,
        "earlyStopping": given.early_stopping is not None,
        "scheduler": given.scheduler is Scheduler.REDUCE_LR_ON_PLATEAU,
    }
    field = next((name for name, acts in acting.items() if acts), None)
    if field is not None:
        message = f"hyperparameters.{field} needs dev rows, and none is left"
        remedy = "Set split.devPercentage, or give a dataset role dev; rows that are empty or too long do not count."
        raise RunError(FailureClass.INVALID_CONFIG, "NoDevRows", message, remedy)


def _early_stopping(given: Hyperparameters) -> EarlyStoppingStatus | None:
    asked = given.early_stopping
    return EarlyStoppingStatus(patience=asked.patience, min_delta=asked.min_delta) if asked else None


def _decimal(number: float) -> Decimal:
    """The number as it was written."""
    return Decimal(repr(number))


def _ceiling(number: Decimal) -> int:
    return int(number.to_integral_value(ROUND_CEILING))
