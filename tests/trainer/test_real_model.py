"""A real trained model on real rows: stories260k on a little of GSM8K."""

import pytest
from finetune_api.findings import EvaluationStatus

from tests.trainer.runs import SHARED, a_dataset, a_run
from tests.trainer.stories import tell

MODEL, GSM8K = SHARED / "models" / "stories260k", SHARED / "data" / "gsm8k" / "train.jsonl"

pytestmark = pytest.mark.skipif(
    not (MODEL.is_dir() and GSM8K.is_file()), reason="shared/models/stories260k or shared/data/gsm8k is not there"
)


def test_a_few_steps_on_real_rows_make_a_real_model_better(tmp_path_factory: pytest.TempPathFactory) -> None:
    run = a_run(
        tmp_path_factory.mktemp("real"),
        MODEL,
        [a_dataset(GSM8K, "gsm8k", maxRows=120)],
        promptTemplate="Question: <<question>>\nAnswer: ",
        completionTemplate="<<answer>>",
        split={"trainPercentage": 80, "devPercentage": 20},
        hyperparameters={"maxSteps": 12, "learningRate": 5e-3, "overlong": "drop", "loggingSteps": 4},
        evaluation={"metrics": ["perplexity", "exactMatch"], "rows": 2, "answerPattern": r"####\s*(.+)"},
        generation={"maxNewTokens": 16},
    )
    story = tell(run)
    evaluation = story.result.evaluation
    assert isinstance(evaluation, EvaluationStatus)
    assert evaluation.perplexity is not None
    assert evaluation.perplexity.base is not None
    assert evaluation.perplexity.tuned is not None
    assert evaluation.perplexity.tuned < 0.8 * evaluation.perplexity.base
    assert evaluation.generated_rows == 2
    assert "packed" in story.log
