"""How the rows of a model can be packed: tried out on a tiny copy of it, before anything depends on it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune_trainer.attention import rows_attended
from finetune_trainer.batch import Batch, Packing
from finetune_trainer.compute import Compute
from finetune_trainer.pack import packed_batch
from finetune_trainer.prepared import TokenRows
from finetune_trainer.tiny_copy import VOCABULARY, WINDOW, tiny_copy

PROBE_LENGTHS = (4 * WINDOW, 3 * WINDOW, 3 * WINDOW)
"""Rows longer than the copy's window; two of a length, since those share a call."""

LEAK_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference of hidden states, relative to their size, that rounding explains, by compute precision."""

UNPACKED = (
    "hyperparameters.packing: rows of this model would see each other, or it could not be shown that they do not, "
    "so they are padded instead; the loss is the same"
)
"""What a user is told where rows are not packed."""


def find_packing(model: PreTrainedModel, compute: Compute) -> Packing:
    """The way in which rows of the model leave each other alone, on the device that it is to be trained on."""
    decoder = model.get_decoder()
    if any(isinstance(module, nn.Conv1d) for module in decoder.modules()):
        return Packing.NONE  # A state-space or convolutional layer carries one row over into the next.
    copied = tiny_copy(decoder)
    return Packing.NONE if copied is None else packing_of(copied.to(compute.device), compute)


def packing_of(decoder: PreTrainedModel, compute: Compute) -> Packing:
    """As `find_packing`, for a decoder that is small enough to be tried, in eval mode."""
    batch = packed_batch(_probe_rows(), range(len(PROBE_LENGTHS))).to(compute.device)
    assert batch.layout is not None
    with compute.autocast():
        wanted = _alone(decoder, torch.split(batch.input_ids, list(batch.layout.lengths), dim=1))
        if wanted is None or _same(_states(decoder, input_ids=batch.input_ids), wanted, compute):
            return Packing.NONE  # A probe that does not notice rows which do see each other tells nothing.
        ways = (way for way in (Packing.ROWS, Packing.BLOCKS) if _same(_packed(decoder, batch, way), wanted, compute))
        return next(ways, Packing.NONE)


def _alone(decoder: PreTrainedModel, rows: Sequence[Tensor]) -> Tensor | None:
    states = [state for row in rows if (state := _states(decoder, input_ids=row)) is not None]
    return torch.cat(states, dim=1) if len(states) == len(rows) else None


def _packed(decoder: PreTrainedModel, batch: Batch, packing: Packing) -> Tensor | None:
    with rows_attended(decoder, packing):
        return _states(decoder, input_ids=batch.input_ids, position_ids=batch.position_ids, row_layout=batch.layout)


@torch.no_grad()
def _states(decoder: PreTrainedModel, **arguments: object) -> Tensor | None:
    """Hidden states, or the logits of a model that counts its head to its decoder; None where it raises anything."""
    try:
        output = decoder(**arguments, use_cache=False)
        said: Tensor = output["last_hidden_state"] if "last_hidden_state" in output else output["logits"]
    except Exception:  # noqa: BLE001 (models refuse arguments in many ways; it means that this one cannot be packed so)
        return None
    return said.float()


def _same(found: Tensor | None, wanted: Tensor, compute: Compute) -> bool:
    tolerance = LEAK_TOLERANCES[compute.dtype]
    return found is not None and bool((found - wanted).abs().max() <= tolerance * wanted.abs().max())


def _probe_rows() -> TokenRows:
    ids = (np.arange(sum(PROBE_LENGTHS)) * 7 + 3) % VOCABULARY
    offsets = np.concatenate([[0], np.cumsum(PROBE_LENGTHS)])
    return TokenRows(ids.astype(np.int32), np.ones(len(ids), np.bool_), offsets.astype(np.int64))
