"""A model that rotates long texts otherwise than short ones trains and answers for each row as for that row alone."""

from itertools import chain
from typing import Any

import pytest
import torch
from finetune_api.evaluation import Generation
from finetune_api.training import Optimizer
from finetune_trainer.batch import Batch
from finetune_trainer.compute import Compute
from finetune_trainer.generate import Stops, generate
from finetune_trainer.long_rope import rope_border
from finetune_trainer.measure import Engine, make_engine
from finetune_trainer.memory import footprint
from finetune_trainer.pack import micro_batches
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Phi3Config, PreTrainedConfig

from tests.trainer.decoders import SIZES, TOKENS, some_rows

BORDER = 16
"""Above what `batches_cleanly` tries out: it would not notice."""

LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [9.0, 7.0, 5.0, 3.0],
    "factor": 8.0,
}
CPU = Compute(torch.device("cpu"), torch.float32)
ROWS = some_rows((20, 16, 17, 5, 9, 19))
"""On the border, just above it, and on both sides."""


def a_config() -> PreTrainedConfig:
    return Phi3Config(**TOKENS, **SIZES, rope_parameters=LONG_ROPE, original_max_position_embeddings=BORDER)


def an_engine(packing: bool) -> Engine:
    """A tiny Phi-3 with weights so large that positions matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(a_config())
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return make_engine(model, CPU, packing, pytest.fail)


def total_loss(engine: Engine, batches: list[Batch]) -> float:
    with torch.no_grad(), engine.attending():
        return sum(float(engine.loss(batch)) for batch in batches)


@pytest.mark.parametrize("packed", [True, False])
def test_rows_beside_longer_ones_have_the_loss_that_they_have_alone(packed: bool) -> None:
    engine = an_engine(packed)
    assert engine.packed is packed
    every = range(len(ROWS))
    alone = total_loss(engine, micro_batches(ROWS, every, 1, packed))
    together = micro_batches(ROWS, every, 4, packed, border=rope_border(engine.inner.config))
    assert [batch.rows for batch in together] == [3, 3]
    assert total_loss(engine, together) == pytest.approx(alone, rel=1e-5)
    assert engine.likelihood(ROWS, 4).total == pytest.approx(alone, rel=1e-5)
    # Without the border it would show: these weights tell.
    assert total_loss(engine, micro_batches(ROWS, every, 6, packed)) != pytest.approx(alone, rel=1e-3)


def test_every_process_keeps_to_the_border() -> None:
    shares = [micro_batches(ROWS, range(len(ROWS)), 6, True, border=BORDER, rank=rank, size=2) for rank in (0, 1)]
    layouts = [batch.layout for batch in chain(*shares) if batch.layout]
    sides = [{length > BORDER for length in layout.lengths} for layout in layouts]
    assert all(len(side) == 1 for side in sides)


def test_a_prompt_that_grows_over_the_border_changes_no_other() -> None:
    engine = an_engine(packing=False)
    prompts = [[int(id) for id in ROWS.row(number)[0]] for number in range(len(ROWS))]
    arguments: dict[str, Any] = {"stops": Stops([2]), "seed": 0, "decode": str}
    one_by_one, together = (
        generate(engine.inner, prompts, Generation(max_new_tokens=4), batch_size=size, **arguments) for size in (1, 6)
    )
    assert together == one_by_one


def test_its_memory_is_estimated_and_the_model_is_as_before() -> None:
    engine = an_engine(packing=True)
    batch = micro_batches(ROWS, range(2), 2, True)[0]
    before = total_loss(engine, [batch])
    with engine.attending():
        assert footprint(engine.loss, batch, Optimizer.ADAMW, CPU.device, accumulating=False).step > 0
    assert total_loss(engine, [batch]) == before


@pytest.mark.parametrize(
    ("config", "border"),
    [
        (a_config(), BORDER),
        (LlamaConfig(), None),
        (Gemma3TextConfig(), None),
        (
            LlamaConfig(rope_parameters={"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}),
            None,
        ),
        (PreTrainedConfig(), None),
    ],
    ids=["phi3", "llama", "a rope for each kind of layer", "yarn", "no rope"],
)
def test_only_rotations_that_differ_by_length_have_a_border(config: PreTrainedConfig, border: int | None) -> None:
    assert rope_border(config) == border
