"""Whole runs with LoRA's variants: published after a fresh process found the same logits, then trained further."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.decoders import a_decoder
from tests.trainer.stories import a_story_run, tell
from tests.trainer.tiny import a_tokenizer_folder

SHORT: dict[str, Any] = {
    "hyperparameters": {"maxSteps": 4, "learningRate": 1e-2, "trainBatchSize": 4},
    "evaluation": {"metrics": ["perplexity"], "rows": 1},
    "generation": {"maxNewTokens": 4},
}

LORA = {"rank": 4, "alpha": 8, "dora": True, "rslora": True, "modulesToSave": ["embed_tokens", "lm_head"]}


def a_folder(folder: Path, family: str, **changes: Any) -> Path:
    """A model of the family that speaks the tiny tokenizer's language."""
    a_tokenizer_folder(folder)
    a_decoder(family, vocab_size=128, eos_token_id=1, **changes).save_pretrained(str(folder))
    return folder


def test_every_variant_at_once_is_published_and_its_artifact_trained_further(tmp_path: Path) -> None:
    base = a_folder(tmp_path / "base", "llama", tie_word_embeddings=True)
    first = tell(a_story_run(tmp_path / "first", base, **SHORT, method={"lora": LORA}))
    assert (first.artifact / "adapter_model.safetensors").is_file()
    second = tell(a_story_run(tmp_path / "second", first.artifact, **SHORT, method={"lora": LORA}))
    assert first.result.evaluation is not None
    assert second.result.evaluation is not None
    was, starts = first.result.evaluation.perplexity, second.result.evaluation.perplexity
    assert was is not None
    assert starts is not None
    assert starts.base == pytest.approx(was.tuned, rel=1e-4)


def test_experts_are_adapted_and_published_in_a_merged_model(tmp_path: Path) -> None:
    base = a_folder(tmp_path / "base", "qwen3-moe")
    output = {"uri": "s3://unused/models", "artifact": "merged"}
    story = tell(a_story_run(tmp_path / "run", base, **SHORT, method={"lora": {"rank": 4}}, output=output))
    assert (story.artifact / "model.safetensors").is_file()
