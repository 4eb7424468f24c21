"""What a user can get wrong, through the command that the pod runs: exit code 42, one line, the thing and the fix."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from finetune_api.names import Exit
from finetune_api.run import RunResult, RunSpec
from finetune_trainer.__main__ import main

from tests.trainer.runs import PAIR_TEMPLATES, a_dataset, a_run, some_pairs, write_jsonl
from tests.trainer.tiny import a_model_folder

Model = Callable[[Path], Any]


def as_it_is(folder: Path) -> None:
    """Nothing is wrong with the model."""


def edited(name: str, **changes: Any) -> Model:
    """A JSON file of the model with other fields; those that are None are gone."""

    def edit(folder: Path) -> None:
        path = folder / name
        fields = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({field: value for field, value in fields.items() if value is not None}))

    return edit


def ending_with(number: int | None) -> Model:
    """The tokenizer names no end token, and the config this one."""

    def edit(folder: Path) -> None:
        edited("tokenizer_config.json", eos_token=None)(folder)
        edited("config.json", eos_token_id=number)(folder)

    return edit


def written_over(name: str, content: str) -> Model:
    """A file of the model with other content."""
    return lambda folder: (folder / name).write_text(content)


def pickled(folder: Path) -> None:
    """Weights as torch used to save them."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@dataclass(frozen=True)
class Mistake:
    """What is wrong, and what the user has to read."""

    says: tuple[str, ...]
    model: Model = as_it_is
    training: dict[str, Any] | None = None
    rows: tuple[dict[str, Any], ...] = tuple(some_pairs(8))
    run: dict[str, Any] | None = None
    """Other fields of the order."""


A_CHAT = ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},)

MISTAKES = {
    "unknown target module": Mistake(
        ("TargetModulesNotFound", "'q_pro'", "nearest is 'q_proj'"),
        training={"method": {"lora": {"targetModules": ["q_pro"]}}},
    ),
    "pickled weights": Mistake(("NoSafetensors", "pytorch_model.bin", "save_pretrained"), pickled),
    "own code": Mistake(
        ("RemoteCodeForbidden", "modeling_x.X", "trustRemoteCode"),
        edited("config.json", model_type=None, auto_map={"AutoModelForCausalLM": "modeling_x.X"}),
    ),
    "weights of few bits": Mistake(
        ("ModelQuantized", "gptq", "method.quantization"),
        edited("config.json", quantization_config={"quant_method": "gptq"}),
    ),
    "no end token": Mistake(("TokenizerUnsupported", "eos_token_id"), ending_with(None)),
    "an end token that the model does not have": Mistake(
        ("TokenizerMismatch", "id 99 ('<new>')", "99 embeddings", "resize_token_embeddings"),
        edited("tokenizer_config.json", eos_token="<new>"),
    ),
    "a tokenizer config that is no JSON": Mistake(
        ("TokenizerUnsupported", "cannot be loaded"), written_over("tokenizer_config.json", "{")
    ),
    "a generation config that is no JSON": Mistake(
        ("ModelInvalid", "generation_config.json of the model"), written_over("generation_config.json", "{")
    ),
    "an end id that is a text": Mistake(
        ("ModelInvalid", "generation_config.json", "TypeError"),
        written_over("generation_config.json", '{"eos_token_id": "</s>"}'),
    ),
    "a config with a value of another type": Mistake(
        ("ModelInvalid", "config.json", "max_position_embeddings"), edited("config.json", max_position_embeddings="256")
    ),
    "an activation that nobody knows": Mistake(
        ("ModelInvalid", "config.json", "zork"), edited("config.json", hidden_act="zork")
    ),
    "an end id that is none": Mistake(("TokenizerUnsupported", "eos_token_id"), ending_with(-1)),
    "an architecture that is a number": Mistake(
        ("ModelUnsupported", "is a 7, not a decoder"), edited("config.json", architectures=[7])
    ),
    "a chat template that does not end": Mistake(
        ("ChatTemplateInvalid", "Unexpected end of template"),
        edited("tokenizer_config.json", chat_template="{% for m in messages %}"),
        training={"promptTemplate": None, "completionTemplate": None},
        rows=A_CHAT,
    ),
    "chats without a template": Mistake(
        ("NoChatTemplate", "messages", "promptTemplate"),
        training={"promptTemplate": None, "completionTemplate": None},
        rows=A_CHAT,
    ),
    "a length beyond the model": Mistake(
        ("SequenceTooLong", "maxSeqLength is 257", "limit of 256. Set it to at most 256."),
        training={"hyperparameters": {"maxSeqLength": 257}},
    ),
    "a label that is none": Mistake(
        ("LabelUnknown", "'faq'", "line 3", "evaluation.labels"),
        training={
            "evaluation": {"metrics": ["accuracy"], "labels": ["yes", "no"]},
            "split": {"trainPercentage": 50, "devPercentage": 50},
        },
    ),
    "a hyperparameter out of range": Mistake(
        ("RunFileInvalid", "training.hyperparameters.epochs", "greater than or equal to 0. Write"), run={"epochs": -1}
    ),
    "data that changed": Mistake(
        ("DatasetChanged", "'faq'", "sha256:before"), run={"datasetRevisions": {"faq": "sha256:before"}}
    ),
}


def order(tmp_path: Path, mistake: Mistake) -> RunSpec:
    """A run on a model of which only config and tokenizer are read."""
    folder = a_model_folder(tmp_path / "model", weights=False)
    (folder / "model.safetensors").write_bytes(b"")
    mistake.model(folder)
    rows = write_jsonl(tmp_path / "rows.jsonl", list(mistake.rows))
    training = PAIR_TEMPLATES | (mistake.training or {})
    return a_run(tmp_path, folder, [a_dataset(rows)], **{k: v for k, v in training.items() if v is not None})


def written(tmp_path: Path, run: RunSpec, **changes: Any) -> Path:
    """The order as a file; `changes` may be such as no RunSpec takes."""
    fields = json.loads(run.model_dump_json(by_alias=True, exclude_none=True))
    if "epochs" in changes:
        fields["training"]["hyperparameters"]["epochs"] = changes["epochs"]
    if "datasetRevisions" in changes:
        fields["resolved"] = {"datasetRevisions": changes["datasetRevisions"]}
    path = tmp_path / "run.json"
    path.write_text(json.dumps(fields))
    return path


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What the log says last; nothing in it is a stack trace."""
    log = capsys.readouterr().err
    assert "Traceback" not in log
    return log.splitlines()[-1]


@pytest.mark.parametrize("name", MISTAKES)
def test_prepare_refuses_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    mistake = MISTAKES[name]
    path = written(tmp_path, order(tmp_path, mistake), **(mistake.run or {}))
    assert main(["prepare", "--run", str(path)]) == Exit.USER_ERROR
    line = last_line(capsys)
    assert [words for words in mistake.says if words not in line] == [], line


def test_a_setting_that_there_is_not_is_refused_and_not_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, order(tmp_path, Mistake(())))
    fields = json.loads(path.read_text())
    fields["training"]["hyperparameters"]["learnigRate"] = 1
    path.write_text(json.dumps(fields))
    assert main(["prepare", "--run", str(path)]) == Exit.USER_ERROR
    assert "training.hyperparameters.learnigRate: Extra inputs are not permitted" in last_line(capsys)


def test_a_row_that_does_not_fit_into_memory_ends_training_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", some_pairs(8))
    run = a_run(tmp_path, a_model_folder(tmp_path / "model"), [a_dataset(rows)], **PAIR_TEMPLATES)
    assert main(["prepare", "--run", str(written(tmp_path, run))]) == Exit.OK
    resolved = RunResult.model_validate_json(capsys.readouterr().out).resolved
    tight = run.model_copy(update={"resolved": resolved, "memory_bytes": 2**20})
    assert main(["train", "--run", str(written(tmp_path, tight))]) == Exit.USER_ERROR
    line = last_line(capsys)
    assert [words for words in ("NotEnoughMemory", "trainer.memory") if words not in line] == [], line
