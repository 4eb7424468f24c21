"""Real data: GSM8K's answers hold `<<48/2=24>>`, which must never be read as a reference."""

from pathlib import Path

import pytest
from finetune_api.evaluation import Evaluation
from finetune_api.metrics import Metric
from finetune_api.resource import TrainingSpec
from finetune_api.sources import Dataset, Format
from finetune_trainer.data_files import DataFile, DataSource
from finetune_trainer.measure import scores
from finetune_trainer.pairs import Said
from finetune_trainer.reader import DatasetReader, ReadRow

from tests.trainer.runs import SHARED

GSM8K = SHARED / "data" / "gsm8k"

pytestmark = pytest.mark.skipif(not GSM8K.is_dir(), reason="shared/data/gsm8k is not there")

TEMPLATES = {"promptTemplate": "Question: <<question>>\nAnswer: ", "completionTemplate": "<<answer>>"}


def rendered(name: str, **templates: str) -> list[Said]:
    dataset = {"name": "gsm8k", "uri": "s3://data/gsm8k"}
    training = TrainingSpec.model_validate(
        {"model": {"uri": "s3://models/m"}, "datasets": [dataset], "output": {"uri": "s3://out/x"}, **templates}
    )
    file = DataFile(GSM8K / name, dataset["uri"], Format.JSONL, "")
    rows = list(DatasetReader(DataSource(Dataset.model_validate(dataset), (file,)), training).rows())
    assert all(isinstance(row, ReadRow) for row in rows)
    return [row.said for row in rows if isinstance(row, ReadRow)]


@pytest.mark.parametrize(("name", "count", "with_notes"), [("train.jsonl", 7473, 7378), ("test.jsonl", 1319, 1301)])
def test_every_row_renders_with_its_answer_byte_for_byte(name: str, count: int, with_notes: int) -> None:
    import json

    answers = [
        json.loads(line)["answer"] for line in Path(GSM8K / name).read_text(encoding="utf-8").split("\n") if line
    ]
    rows = rendered(name, **TEMPLATES)
    assert len(rows) == len(answers) == count
    assert [row.completion for row in rows] == answers
    assert sum("<<" in row.completion for row in rows) == with_notes
    assert all(row.prompt.startswith("Question: ") and row.prompt.endswith("\nAnswer: ") for row in rows)


def test_the_reference_answers_themselves_match_exactly_and_no_number_is_lost() -> None:
    references = [row.completion for row in rendered("test.jsonl", **TEMPLATES)]
    evaluation = Evaluation.model_validate({"metrics": ["exactMatch"], "answerPattern": r"####\s*(.+)"})
    found = scores(evaluation, references, references)
    assert (found[Metric.EXACT_MATCH], found[Metric.ROUGE_L]) == (1.0, 1.0)
    without_commas = [reference.replace(",", "") for reference in references]
    assert without_commas != references
    assert scores(evaluation, without_commas, references)[Metric.EXACT_MATCH] == 1.0
