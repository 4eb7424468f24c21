"""A run on chats: the model learns the answers, and the artifact knows where a turn ends."""

import json
from pathlib import Path
from typing import Any

from finetune_api.metrics import Metric

from tests.trainer.runs import a_dataset, a_run, write_jsonl
from tests.trainer.stories import HIDDEN, TRAINING, tell
from tests.trainer.tiny import PAD, a_model_folder

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}<pad>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""Ends turns with a token that is not the end token."""


def talks(separators: str) -> list[dict[str, Any]]:
    """Letters asked for, and their capitals answered, two in a row."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"a{between}"},
                {"role": "assistant", "content": "A"},
                {"role": "user", "content": f"{letter}{between}"},
                {"role": "assistant", "content": letter.upper()},
            ]
        }
        for letter in "abcdefgh"
        for between in separators
    ]


def test_answers_are_learned_and_the_artifact_stops_at_the_end_of_a_turn(tmp_path: Path) -> None:
    model = a_model_folder(tmp_path / "model", hidden=HIDDEN)
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    train = write_jsonl(tmp_path / "train.jsonl", talks(":-+"))
    test = write_jsonl(tmp_path / "test.jsonl", talks("="))
    datasets = [a_dataset(train, "train"), a_dataset(test, "test", role="test")]
    hyperparameters = {**TRAINING["hyperparameters"], "evalSteps": 0, "epochs": 6}
    story = tell(a_run(tmp_path, model, datasets, **{**TRAINING, "hyperparameters": hyperparameters}))
    assert story.result.evaluation is not None
    perplexity = story.result.evaluation.measured()[Metric.PERPLEXITY]
    assert perplexity is not None
    assert (perplexity.tuned or 0) < (perplexity.base or 0) / 2
    settings = json.loads((story.artifact / "generation_config.json").read_text())
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    assert vocabulary[PAD] in settings["eos_token_id"]
    samples = [json.loads(line) for line in (story.artifact / "samples.jsonl").read_text().splitlines()]
    assert samples[0]["prompt"].endswith("<pad>\nassistant:")
    assert [sample["reference"] for sample in samples] == ["A", "B", "C"]
