"""How the rows of a model can be packed: tried out on a tiny copy of it, before anything depends on it."""

import numpy as np
from transformers import PreTrainedModel

from finetune_trainer.attention import LEAK_TOLERANCES, packs_cleanly
from finetune_trainer.batch import Packing
from finetune_trainer.compute import Compute
from finetune_trainer.pack import packed_batch
from finetune_trainer.prepared import TokenRows
from finetune_trainer.tiny_copy import VOCABULARY, WINDOW, tiny_copy

PROBE_LENGTHS = (4 * WINDOW, 3 * WINDOW, 3 * WINDOW)
"""Rows longer than the copy's window; two of a length, since those share a call."""

UNPACKED = (
    "hyperparameters.packing: rows of this model would see each other, so they are padded instead; the loss is the same"
)
"""What a user is told where rows cannot be packed."""


def find_packing(model: PreTrainedModel, compute: Compute) -> Packing:
    """The way in which rows of the model leave each other alone, on the device that it is to be trained on."""
    copied = tiny_copy(model.get_decoder())
    if copied is None:
        return Packing.NONE
    copied = copied.to(compute.device)
    batch = packed_batch(_probe_rows(), range(len(PROBE_LENGTHS))).to(compute.device)
    assert batch.layout is not None
    tolerance = LEAK_TOLERANCES[compute.dtype]
    with compute.autocast():
        for packing in (Packing.ROWS, Packing.BLOCKS):
            if packs_cleanly(copied, batch.layout, batch.input_ids, batch.position_ids, packing, tolerance):
                return packing
    return Packing.NONE


def _probe_rows() -> TokenRows:
    ids = (np.arange(sum(PROBE_LENGTHS)) * 7 + 3) % VOCABULARY
    offsets = np.concatenate([[0], np.cumsum(PROBE_LENGTHS)])
    return TokenRows(ids.astype(np.int32), np.ones(len(ids), np.bool_), offsets.astype(np.int64))
