"""The artifact's folder on local disk: weights, tokenizer, settings, evaluation, card. safetensors only."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from finetune_api.findings import EvaluationStatus
from finetune_api.names import LOCK_FILE
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel

CARD_FILE = "README.md"
EVALUATION_FILE = "evaluation.json"
SAMPLES_FILE = "samples.jsonl"
TRAINING_LOG_FILE = "training_log.jsonl"
REPORT_PAGE_FILE = "report.html"

MERGED_FOLDER = "merged"
"""Where the whole model lies when an adapter is published too: the artifact's folder itself is the adapter's."""
PLAN_FILE = "plan.json"

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tokenization_*.py",  # There only where model.trustRemoteCode has brought it.
)
"""What tokenizers of any family are made of; copied byte for byte, so that ids stay ids."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Papers:
    """What goes into the artifact beside the weights."""

    lock: Json
    card: str
    evaluation: EvaluationStatus
    samples: list[Json]
    training_log: list[Json]
    plan: Json
    page: str
    """HTML that tells the run to a person."""


def write_adapter(model: PeftModel, folder: Path, base_name: str, base_revision: str | None) -> None:
    """Adapter weights and config, which names the base as loaders should call it."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = base_name
    config.revision = base_revision
    # Never "auto": that looks the base up on the hub to compare vocabularies.
    model.save_pretrained(str(folder), save_embedding_layers=False)


def write_model(model: PreTrainedModel, folder: Path, dtype: torch.dtype, generation: GenerationConfig) -> None:
    """The whole model in `dtype`; its weights are converted in place."""
    model.generation_config = generation
    model.to(dtype).save_pretrained(str(folder), safe_serialization=True)


def write_tokenizer(folder: Path, base: Path, generation: GenerationConfig) -> None:
    """What a folder of weights needs to be used: the base's tokenizer, and generation settings."""
    for pattern in TOKENIZER_FILES:
        for path in base.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    generation.save_pretrained(str(folder))


def write_papers(folder: Path, papers: Papers) -> None:
    """Lock file, card, evaluation, samples, training log, plan and report page."""
    _write_json(folder / LOCK_FILE, papers.lock)
    _write_json(folder / EVALUATION_FILE, papers.evaluation.to_json())
    _write_lines(folder / SAMPLES_FILE, papers.samples)
    _write_lines(folder / TRAINING_LOG_FILE, papers.training_log)
    _write_json(folder / PLAN_FILE, papers.plan)
    (folder / REPORT_PAGE_FILE).write_text(papers.page, encoding="utf-8")
    (folder / CARD_FILE).write_text(papers.card, encoding="utf-8")


def _write_json(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_lines(path: Path, rows: Iterable[Json]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
