"""Contrastive search: among the likeliest tokens, the one that is least like what was said already.

Written here because transformers 5 fetches its own from the hub as code. Source: Su et al. 2022, "A Contrastive
Framework for Neural Text Generation", arXiv 2202.06417, section 3.2.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class _State:
    """What is known of each row after its newest token."""

    logits: Tensor
    """fp32 (rows, vocabulary): of the next token."""
    hidden: Tensor
    """fp32 (rows, tokens, width): the last layer's states, each of length 1."""
    mask: Tensor
    """int64 (rows, tokens), 1 = token."""
    cache: Any
    """Keys and values, or recurrent states, of all tokens."""

    def of(self, rows: Tensor) -> "_State":
        """The state of these rows, which may repeat; the cache itself is changed, and belongs to the new state."""
        self.cache.reorder_cache(rows)
        return replace(self, logits=self.logits[rows], hidden=self.hidden[rows], mask=self.mask[rows])


@torch.no_grad()
def contrastive_search(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, alpha: float, top_k: int, length: int, end_ids: Sequence[int]
) -> Tensor:
    """Continue int64 (rows, tokens), padded on the left, by up to `length` tokens: int64 (rows, new tokens).

    Stops once every row has one of `end_ids`; what follows it in a row means nothing. Each new token costs one forward
    over rows · top_k sequences of one token.
    """
    ends, top_k = torch.tensor(end_ids, device=ids.device), min(top_k, model.config.get_text_config().vocab_size)
    state, chosen = _state(model, ids, mask, None), ids[:, :0]
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    while chosen.shape[1] < length and not bool(ended.all()):
        token, state = _step(model, state, alpha, top_k)
        chosen = torch.cat([chosen, token], 1)
        ended |= torch.isin(token[:, 0], ends)
    return chosen


def _step(model: PreTrainedModel, state: _State, alpha: float, top_k: int) -> tuple[Tensor, _State]:
    """The next token of each row, (rows, 1), and the state after it: equation 5 of the paper."""
    rows = len(state.logits)
    probabilities, candidates = state.logits.softmax(-1).topk(top_k)
    tried = state.of(torch.arange(rows, device=candidates.device).repeat_interleave(top_k))
    after = _state(model, candidates.reshape(-1, 1), tried.mask, tried)
    alike = (after.hidden[:, :-1] @ after.hidden[:, -1:].mT).squeeze(-1)
    alike = alike.masked_fill(after.mask[:, :-1] == 0, -torch.inf).amax(-1).view(rows, top_k)
    best = ((1 - alpha) * probabilities - alpha * alike).argmax(-1, keepdim=True)
    winners = torch.arange(rows, device=best.device) * top_k + best[:, 0]
    return candidates.gather(1, best), after.of(winners)


def _state(model: PreTrainedModel, ids: Tensor, mask: Tensor, before: _State | None) -> _State:
    """The state after reading `ids` (rows, tokens) behind those of `before`, whose cache is used up."""
    accepted = inspect.signature(model.forward).parameters
    cache_name = "cache_params" if "cache_params" in accepted else "past_key_values"
    if before is not None:
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
    known = {cache_name: before.cache if before else None, "attention_mask": mask, "use_cache": True}
    if "position_ids" in accepted:
        known["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    inputs = model.prepare_inputs_for_generation(
        ids, next_sequence_length=ids.shape[1], is_first_iteration=before is None, **known
    )
    outputs = model(**inputs, output_hidden_states=True)
    hidden = torch.nn.functional.normalize(outputs.hidden_states[-1].float(), dim=-1)
    if before is not None:
        hidden = torch.cat([before.hidden, hidden], 1)
    return _State(outputs.logits[:, -1].float(), hidden, mask, outputs[cache_name])
