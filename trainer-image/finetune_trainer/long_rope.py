"""Models that rotate positions in one way in short texts and in another in long ones (LongRoPE).

transformers takes the way that suits the longest row of a batch for all of its rows, so rows of both kinds must not
share a batch. Sources: Ding et al. 2024, arXiv 2402.13753; transformers.modeling_rope_utils.
"""

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig


def rope_border(config: PreTrainedConfig) -> int | None:
    """Tokens of the longest text that counts as short; None for a model to which all are alike."""
    ropes = _ropes(getattr(config.get_text_config(), "rope_parameters", None))
    borders = (rope.get("original_max_position_embeddings") for rope in ropes if rope.get("rope_type") == "longrope")
    return next((int(border) for border in borders if border), None)


def _ropes(found: Any) -> Iterator[dict[str, Any]]:
    """The parameters, or those of each kind of layer."""
    if not isinstance(found, dict):
        return
    yield found
    for each in found.values():
        yield from _ropes(each)
