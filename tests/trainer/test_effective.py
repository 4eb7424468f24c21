"""Steps in exact decimals, defaults and limits."""

from typing import Any

import pytest
from finetune_api.resource import TrainingSpec
from finetune_api.training import Hyperparameters
from finetune_trainer.effective import effective_hyperparameters, sequence_length, total_steps, warmup_steps
from finetune_trainer.errors import RunError


def a_training(method: str = "lora", **hyperparameters: object) -> TrainingSpec:
    return TrainingSpec.model_validate(
        {
            "model": {"uri": "s3://models/base"},
            "datasets": [{"name": "faq", "uri": "s3://data/faq.jsonl"}],
            "output": {"uri": "s3://out/x"},
            "method": {"type": method},
            "hyperparameters": hyperparameters,
        }
    )


@pytest.mark.parametrize(
    ("rows", "hyperparameters", "steps"),
    [
        (10, {"trainBatchSize": 4, "epochs": 1}, 3),
        (10, {"trainBatchSize": 4, "epochs": 1, "gradientAccumulationSteps": 2}, 2),
        (10, {"trainBatchSize": 4, "epochs": 0.5}, 2),
        (10, {"trainBatchSize": 1, "epochs": 0.1}, 1),
        (10, {"trainBatchSize": 1, "epochs": 1.1}, 11),
        (30, {"trainBatchSize": 1, "epochs": 0.7}, 21),
        (10, {"trainBatchSize": 4, "epochs": 5, "maxSteps": 7}, 7),
    ],
)
def test_steps_are_epochs_times_steps_per_epoch_rounded_up(
    rows: int, hyperparameters: dict[str, Any], steps: int
) -> None:
    found = effective_hyperparameters(a_training(**hyperparameters), rows, 0, 64)
    assert found.total_steps == steps


def test_devices_make_the_effective_batch_larger() -> None:
    training = a_training(trainBatchSize=2, epochs=1)
    assert effective_hyperparameters(training, 16, 0, 64, devices=4).total_steps == 2


@pytest.mark.parametrize(
    ("given", "total", "warmup"),
    [
        ({}, 10, 0),
        ({"warmupRatio": 0.2}, 10, 2),
        ({"warmupRatio": 0.03}, 100, 3),
        ({"warmupRatio": 0.07}, 100, 7),
        ({"warmupRatio": 0.01}, 10, 1),
        ({"warmupSteps": 9}, 10, 9),
    ],
)
def test_warmup_is_its_share_of_the_steps_rounded_up(given: dict[str, Any], total: int, warmup: int) -> None:
    assert warmup_steps(Hyperparameters.model_validate(given), total) == warmup


@pytest.mark.parametrize("given", [{"warmupSteps": 10}, {"warmupSteps": 11}, {"warmupRatio": 0.95}])
def test_a_warmup_without_an_end_is_refused_with_the_limit(given: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="of 10 steps in all") as caught:
        warmup_steps(Hyperparameters.model_validate(given), 10)
    assert caught.value.reason == "WarmupTooLong"
    assert "at most 9 warmup steps" in caught.value.remedy


def test_max_steps_wins_over_epochs() -> None:
    assert total_steps(Hyperparameters(epochs=1000, max_steps=3), 10) == 3


@pytest.mark.parametrize(("method", "rate"), [("lora", 2e-4), ("full", 1e-5)])
def test_the_default_rate_goes_by_the_method_and_never_replaces_a_given_one(method: str, rate: float) -> None:
    assert effective_hyperparameters(a_training(method), 10, 0, 64).learning_rate == rate
    assert effective_hyperparameters(a_training(method, learningRate=0.5), 10, 0, 64).learning_rate == 0.5


def test_evaluation_is_each_epoch_by_default_and_never_without_dev_rows() -> None:
    training = a_training(trainBatchSize=4)
    assert effective_hyperparameters(training, 10, 2, 64).eval_steps == 3
    assert effective_hyperparameters(a_training(evalSteps=5), 10, 2, 64).eval_steps == 5
    assert effective_hyperparameters(training, 10, 0, 64).eval_steps is None


@pytest.mark.parametrize(
    ("field", "value"), [("evalSteps", 5), ("earlyStopping", {}), ("scheduler", "reduce_lr_on_plateau")]
)
def test_what_acts_on_dev_rows_is_refused_where_none_is_left(field: str, value: Any) -> None:
    with pytest.raises(RunError, match=rf"NoDevRows: hyperparameters\.{field} needs dev rows"):
        effective_hyperparameters(a_training(**{field: value}), 10, 0, 64)


def test_checkpoints_are_each_epoch_by_default() -> None:
    assert effective_hyperparameters(a_training(trainBatchSize=4), 10, 0, 64).save_steps == 3
    assert effective_hyperparameters(a_training(saveSteps=5), 10, 0, 64).save_steps == 5


def test_early_stopping_is_off_unless_asked_for() -> None:
    assert effective_hyperparameters(a_training(), 10, 2, 64).early_stopping is None
    found = effective_hyperparameters(a_training(earlyStopping={"minDelta": 0.1}), 10, 2, 64).early_stopping
    assert found is not None
    assert (found.patience, found.min_delta) == (3, 0.1)


@pytest.mark.parametrize(
    ("given", "limit", "length"),
    [(None, None, 2048), (None, 512, 512), (None, 8192, 2048), (512, 512, 512), (9, None, 9)],
)
def test_the_length_is_2048_or_the_models_limit_unless_given(given: int | None, limit: int | None, length: int) -> None:
    assert sequence_length(given, limit) == length


def test_a_length_above_the_models_limit_is_refused_naming_both() -> None:
    with pytest.raises(RunError, match="maxSeqLength is 513, above the model's limit of 512"):
        sequence_length(513, 512)
