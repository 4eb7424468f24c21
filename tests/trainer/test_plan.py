"""The memory ladder and what is chosen on it; pure."""

import pytest
from finetune_api.failures import MEMORY_RUNGS
from finetune_api.findings import PlanStatus
from finetune_api.names import FailureClass
from finetune_api.training import GradientCheckpointing
from finetune_trainer.errors import RunError
from finetune_trainer.plan import (
    CHECKPOINTED_FROM,
    COMPILE_GAIN,
    COMPILE_SECONDS,
    TRAINING_SHARE,
    Load,
    Memory,
    Rung,
    choose,
    explained,
    ladder,
    pays_to_compile,
)

AUTO, ALWAYS, NEVER = GradientCheckpointing.AUTO, GradientCheckpointing.ALWAYS, GradientCheckpointing.NEVER
MANY = Load(largest=8000, longest=1500)
ONE_ROW = Load(largest=1500, longest=1500)


def a_memory(available: int | None) -> Memory:
    return Memory(None if available is None else available * 10 // 9 + 1, "trainer.memory, 1.00 GiB", "raise it")


def a_cost(rung: Rung) -> int:
    """A hundred bytes a token, a tenth of them where activations are computed again."""
    return rung.tokens * (10 if rung.checkpointing else 100)


@pytest.mark.parametrize(
    ("load", "wanted", "rungs"),
    [
        (MANY, AUTO, [(8000, False), (4000, False), (2000, True), (1500, True)]),
        (Load(20_000, 2500), AUTO, [(20_000, False), (10_000, False), (5000, False), (2500, False), (2500, True)]),
        (MANY, ALWAYS, [(8000, True), (4000, True), (2000, True), (1500, True)]),
        (MANY, NEVER, [(8000, False), (4000, False), (2000, False), (1500, False)]),
        (ONE_ROW, AUTO, [(1500, False), (1500, True)]),
        (ONE_ROW, ALWAYS, [(1500, True)]),
        (ONE_ROW, NEVER, [(1500, False)]),
    ],
)
def test_the_ladder_halves_down_to_one_row_and_then_computes_activations_again(
    load: Load, wanted: GradientCheckpointing, rungs: list[tuple[int, bool]]
) -> None:
    assert ladder(load, wanted) == [Rung(*rung) for rung in rungs]


@pytest.mark.parametrize(
    ("available", "number"), [(800_000, 0), (799_999, 1), (400_000, 1), (399_999, 2), (20_000, 2), (15_000, 3)]
)
def test_the_first_rung_that_fits_is_taken(available: int, number: int) -> None:
    choice = choose(ladder(MANY, AUTO), 0, a_cost, a_memory(available))
    assert choice.number == number
    assert choice.estimate == a_cost(choice.rung) <= available


def test_attempts_without_memory_go_further_down_from_the_rung_that_was_said_to_fit() -> None:
    assert [choose(ladder(MANY, AUTO), tried, a_cost, a_memory(400_000)).number for tried in range(3)] == [1, 2, 3]


def test_an_attempt_that_would_be_the_same_again_is_not_made() -> None:
    with pytest.raises(RunError, match=r"2 attempts had no memory left in trainer\.memory") as caught:
        choose(ladder(ONE_ROW, AUTO), 2, a_cost, a_memory(10**9))
    assert (caught.value.failure_class, caught.value.reason) == (FailureClass.INVALID_CONFIG, "NotEnoughMemory")


@pytest.mark.parametrize("memory", [a_memory(None), a_memory(1)])
def test_without_an_estimate_or_a_limit_the_fastest_is_tried(memory: Memory) -> None:
    unknown = memory.bytes is None
    assert choose(ladder(MANY, AUTO), 0, a_cost if unknown else lambda _: None, memory).number == 0


def test_a_row_that_does_not_fit_alone_ends_the_run_with_the_numbers() -> None:
    with pytest.raises(RunError) as caught:
        choose(ladder(MANY, NEVER), 0, lambda rung: rung.tokens * 2**20, a_memory(2**30))
    error = caught.value
    assert (error.failure_class, error.reason) == (FailureClass.INVALID_CONFIG, "NotEnoughMemory")
    for words in ("1500 tokens", "1.46 GiB", "1.00 GiB", "activations kept", "trainer.memory"):
        assert words in error.message
    assert error.remedy.startswith("Set hyperparameters.gradientCheckpointing to auto, lower ")


def test_the_operators_ladder_reaches_activation_checkpointing() -> None:
    assert MEMORY_RUNGS > CHECKPOINTED_FROM


@pytest.mark.parametrize(("longer", "pays"), [(0.0, False), (0.99, False), (1.01, True), (100.0, True)])
def test_compiling_pays_once_it_saves_more_time_than_it_takes(longer: float, pays: bool) -> None:
    """On a GPU that multiplies at 10¹⁵ operations per second."""
    seconds = longer * COMPILE_SECONDS / COMPILE_GAIN
    assert pays_to_compile(seconds * TRAINING_SHARE * 1e15, 1e15) is pays


def test_the_table_says_what_how_and_why_in_columns() -> None:
    plan = PlanStatus(
        precision="float32",
        attention="packed",
        micro_batch_tokens=512,
        activation_checkpointing=False,
        estimated_bytes=3 * 2**20,
    )
    lines = explained(plan, {"precision": "a CPU computes in fp32"})
    assert lines[0] == "plan: precision                float32  a CPU computes in fp32"
    assert "plan: activationCheckpointing  no" in lines
    assert "plan: estimatedBytes           3.0 MiB" in lines
