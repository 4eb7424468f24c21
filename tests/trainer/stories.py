"""Whole runs in this process: prepare, then train, on a tiny model and rows that it can learn."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.names import Stage
from finetune_api.run import RunResult, RunSpec
from finetune_trainer.log import Log
from finetune_trainer.prepare import prepare
from finetune_trainer.report import Reporter
from finetune_trainer.store import open_store
from finetune_trainer.train import train

from tests.trainer.runs import a_dataset, a_run, write_jsonl
from tests.trainer.tiny import a_model_folder

HIDDEN = 64
"""Smallest width that 4-bit blocks of 64 divide."""

TRAINING: dict[str, Any] = {
    "hyperparameters": {"epochs": 10, "learningRate": 1e-2, "trainBatchSize": 4, "loggingSteps": 5, "evalSteps": 10},
    "evaluation": {"metrics": ["perplexity", "exactMatch"], "rows": 3},
    "generation": {"maxNewTokens": 8},
}


@dataclass(frozen=True)
class Story:
    """A run that went through."""

    run: RunSpec
    result: RunResult
    log: str

    @property
    def artifact(self) -> Path:
        """The published folder."""
        assert self.result.artifact is not None
        return Path(self.result.artifact.uri.removeprefix("file://"))


def capital_rows(separators: str, letters: str = "abcdefgh") -> list[dict[str, str]]:
    """Rows such as `a:` → `A`: easy to learn, whatever stands between."""
    return [{"prompt": f"{a}{between}", "completion": a.upper()} for a in letters for between in separators]


def a_story_run(folder: Path, model: Path | str | None = None, **training: Any) -> RunSpec:
    """The order for a run on letters with some separators, measured on letters with another."""
    data = write_jsonl(folder / "data.jsonl", capital_rows(":-+"))
    test = write_jsonl(folder / "test.jsonl", capital_rows("=", "abcd"))
    dev = write_jsonl(folder / "dev.jsonl", capital_rows("*", "efgh"))
    datasets = [a_dataset(data, "data"), a_dataset(test, "test", role="test"), a_dataset(dev, "dev", role="dev")]
    return a_run(folder, model or a_model_folder(folder / "model", hidden=HIDDEN), datasets, **{**TRAINING, **training})


def tell(run: RunSpec, writer: str = "0123456789") -> Story:
    """Run both stages."""
    store, stream = open_store(run.output_uri, run.storage), io.StringIO()
    log = Log(stream=stream)
    resolved = prepare(run, store, log.say).resolved
    assert resolved is not None
    run = run.model_copy(update={"resolved": resolved})
    with Reporter(run, Stage.TRAIN, log) as report:
        result = train(run, store, writer, report)
    return Story(run, result, stream.getvalue())
