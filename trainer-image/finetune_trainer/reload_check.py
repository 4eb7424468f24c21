"""The order for the fresh process that loads an artifact again. Loads without torch."""

from finetune_api.base import StrictModel
from finetune_api.training import Quantization


class ReloadCheck(StrictModel):
    """What the fresh process has to load and to find."""

    artifact: str
    """The artifact's folder."""
    base: str | None
    """For an adapter: the folder of the base."""
    quantization: Quantization
    """How the base was stored while the adapter was trained."""
    weights: str
    """Precision that the weights are loaded in, as torch calls it, such as `float32`."""
    trusted: bool = False
    """Whether the model's own code may run."""
    gpus: int
    threads: int | None
    probe: str
    """safetensors file with `ids.<n>` (1, tokens) and `logits.<n>` (tokens, vocabulary)."""
