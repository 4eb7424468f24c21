"""The GPU benchmark plans as the product does, for any GPU, without one."""

import pytest
from finetune_trainer.plan import Memory, Rung

from bench.gpu_models import TINY_SHAPES
from bench.gpu_trainings import WITHOUT_LIMIT, Variant, planned_without_gpu

SHAPE = TINY_SHAPES["8B"]


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_smaller_gpu_gets_smaller_micro_batches(method: str) -> None:
    variant = Variant("any", method=method)
    whole = planned_without_gpu(variant, SHAPE, WITHOUT_LIMIT)
    assert whole.number == 0
    assert whole.estimate is not None
    scarce = planned_without_gpu(variant, SHAPE, Memory(whole.estimate, "nine tenths of it", "choose a bigger GPU"))
    assert scarce.number > 0
    assert scarce.estimate is not None
    assert scarce.estimate <= 0.9 * whole.estimate


def test_quantised_weights_leave_more_room() -> None:
    plain, quantised = (
        planned_without_gpu(Variant("any", method=method), SHAPE, WITHOUT_LIMIT) for method in ("lora", "qlora")
    )
    assert plain.rung == quantised.rung == Rung(plain.rung.tokens, checkpointing=False)
    assert plain.estimate is not None
    assert quantised.estimate is not None
    assert quantised.estimate < plain.estimate
