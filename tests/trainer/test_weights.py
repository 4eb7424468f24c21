"""A base whose weights are not whole is refused: transformers would fill the gaps with random numbers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from finetune_api.training import Quantization
from finetune_trainer.errors import RunError
from finetune_trainer.model import load_base
from safetensors.torch import load_file, save_file

from tests.trainer.tiny import a_model_folder

UP = "model.layers.0.mlp.up_proj.weight"


def lacking(name: str) -> Callable[[Path], None]:
    """The file without one of its tensors."""

    def change(path: Path) -> None:
        weights = load_file(path)
        del weights[name]
        save_file(weights, path, metadata={"format": "pt"})

    return change


def of_another_shape(*shape: int) -> Callable[[Path], None]:
    """One tensor is that of another model."""

    def change(path: Path) -> None:
        save_file(load_file(path) | {UP: torch.zeros(shape)}, path, metadata={"format": "pt"})

    return change


def cut(path: Path) -> None:
    """The upload was cut short."""
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "quantization", "says"),
    [
        (lacking(UP), "none", f"lack '{UP}'"),
        (lacking("lm_head.weight"), "nf4", "lack 'lm_head.weight'"),
        (of_another_shape(3, 5), "none", f"hold {UP} as [3, 5], and config.json wants [64, 32]"),
        (of_another_shape(32, 64), "nf4", f"hold {UP} as [32, 64], and config.json wants [64, 32]"),
        (of_another_shape(63, 32), "int8", f"hold {UP} as [63, 32], and config.json wants [64, 32]"),
        (of_another_shape(64 * 32), "int8", "hold tensors of another shape"),
        (cut, "none", "cannot be read"),
    ],
)
def test_weights_that_are_not_whole_are_refused(
    tmp_path: Path, change: Callable[[Path], None], quantization: str, says: str
) -> None:
    folder = a_model_folder(tmp_path / "model")
    change(folder / "model.safetensors")
    with pytest.raises(RunError) as caught:
        load_base(folder, Quantization(quantization), torch.float32, torch.device("cpu"))
    assert (caught.value.failure_class, caught.value.reason) == ("InvalidConfig", "ModelInvalid")
    assert says in caught.value.message
