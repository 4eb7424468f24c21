"""The fresh process that loads an artifact again: its order, and how it is run. Loads without torch."""

import subprocess
import sys
from pathlib import Path

from finetune_api.base import StrictModel
from finetune_api.names import FailureClass
from finetune_api.training import Quantization
from finetune_api.words import shortened

from finetune_trainer.errors import RunError


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


def check_in_fresh_process(check: ReloadCheck, scratch: Path) -> None:
    """Run the comparison in a new process. Raises RunError (ArtifactMismatch) where it fails."""
    path = scratch / "reload.json"
    path.write_text(check.model_dump_json(by_alias=True), encoding="utf-8")
    done = run_fresh("reload", "--check", str(path))
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        message = f"the artifact does not load as what was trained: {shortened(last, 500)}"
        raise RunError(FailureClass.INFRASTRUCTURE, "ArtifactMismatch", message)


def run_fresh(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """A command of this program in a process that has nothing of this one."""
    command = [sys.executable, "-m", "finetune_trainer", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
