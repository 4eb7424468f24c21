"""The prepare stage: everything that can be wrong is found here, on a CPU, before anybody asks for a GPU.

Fetch the data, read every row, split, fetch the model's config and tokenizer, tokenise, check the model, and write the
prepared folder. The data report is written whether the rows can be used or not.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from finetune_api.names import STATUS_WARNING_LENGTH, FailureClass, Stage
from finetune_api.resource import TrainingSpec
from finetune_api.run import RunResult, RunSpec
from finetune_api.status import DataStatus, DroppedCounts, Resolved, RowCounts

from finetune_trainer.answers import answer_pattern, check_labels
from finetune_trainer.corpus import Corpus
from finetune_trainer.data_report import DataReport, data_report
from finetune_trainer.datasets import count, fetch_dataset, split_rows
from finetune_trainer.effective import effective_hyperparameters, sequence_length
from finetune_trainer.errors import RunError, shortened
from finetune_trainer.fetch import ModelFiles, fetch_model
from finetune_trainer.gate import check_measurable
from finetune_trainer.model_config import check_decoder, position_limit, read_config
from finetune_trainer.prepared import (
    REPORT_FILE,
    DatasetDigest,
    Prepared,
    PreparedIndex,
    continuable,
    prepared_key,
    write_prepared,
)
from finetune_trainer.split import Part, Parts
from finetune_trainer.store import Store, uri_of
from finetune_trainer.survey import Problems, Survey, survey
from finetune_trainer.tokens import Oddities, RowTokenizer

Say = Callable[[str], None]
"""Takes one line about what is going on."""

MOST_WARNINGS = 8
"""Warnings that the status takes; the report has all."""


def prepare(spec: RunSpec, store: Store, say: Say) -> RunResult:
    """Prepare a run below `store`, the run's root. Raises RunError for whatever stands in the way."""
    answer_pattern(spec.training.evaluation.answer_pattern)  # Only used once trained, and by then too late to refuse.
    surveys = read_datasets(spec, store, say)
    parts, dropped = split_rows(surveys, spec.training)
    model = fetch_model(spec, Path(spec.scratch_directory), weights=False)
    say(f"model {model.uri} at revision {model.revision}")
    resolved, limit = check_model(spec, model)
    max_length = sequence_length(spec.training.hyperparameters.max_seq_length, limit)
    corpus = tokenise(surveys, parts, spec.training, model, max_length)
    if corpus.refuses_lengths():
        write_report(store, data_report(surveys, corpus.overlong))
        raise corpus.lengths_error(limit)
    prepared = assemble(spec, store, surveys, parts, dropped, corpus, resolved)
    check_evaluation(prepared, spec.training, limit)
    data = prepared.index.data
    warnings = all_warnings(surveys, corpus.tokenizer.oddities)
    write_report(store, data_report(surveys, Problems(), data, prepared.train, corpus.samples, warnings))
    write_prepared(store, Path(spec.scratch_directory), prepared)
    say(f"prepared {data.rows.train} train, {data.rows.dev} dev and {data.rows.test} test rows, {data.tokens} tokens")
    effective = prepared.index.effective_hyperparameters
    return RunResult(stage=Stage.PREPARE, data=data, effective_hyperparameters=effective, resolved=resolved)


def read_datasets(spec: RunSpec, store: Store, say: Say) -> list[Survey]:
    """Fetch and read every dataset once. Raises RunError after all have been read, and reports the problems."""
    problems, surveys = Problems(), []
    for dataset in spec.training.datasets:
        file = fetch_dataset(dataset, spec.storage, Path(spec.scratch_directory) / "datasets")
        surveys.append(survey(file, spec.training, problems))
        say(f"{file.where}: {surveys[-1].rows} rows")
    if problems.total:
        write_report(store, data_report(surveys, problems))
        raise problems.error(uri_of(store, prepared_key(REPORT_FILE)))
    return surveys


def check_model(spec: RunSpec, model: ModelFiles) -> tuple[Resolved, int | None]:
    """What the model's names turned out to mean, and its position limit. Imports torch, for the meta device."""
    from finetune_trainer.model import check_on_meta

    config = read_config(model.model.folder, model.model.uri)
    check_decoder(config, model.model.uri)
    parameters, trainable = check_on_meta(model.model.folder, spec.training, model.adapter)
    found = {
        # The operator's name for it wins: a volume's mount path means nothing to a reader of the status.
        "model_uri": spec.resolved.model_uri or model.uri,
        "model_revision": model.revision,
        "parameters": parameters,
        "trainable_parameters": trainable,
    }
    return spec.resolved.model_copy(update=found), position_limit(config)


def tokenise(
    surveys: list[Survey], parts: list[Parts], training: TrainingSpec, model: ModelFiles, max_length: int
) -> Corpus:
    """All rows that are kept, as tokens."""
    from finetune_trainer.vocabulary import load_tokenizer

    corpus = Corpus(RowTokenizer(*load_tokenizer(model.model.folder)), training, max_length)
    for found, part in zip(surveys, parts, strict=True):
        corpus.add(found.file, part)
    return corpus


def assemble(
    spec: RunSpec,
    store: Store,
    surveys: list[Survey],
    parts: list[Parts],
    dropped: DroppedCounts,
    corpus: Corpus,
    resolved: Resolved,
) -> Prepared:
    """Rows, counts and settings as they are written. Raises RunError where no train row is left."""
    train, dev, test = (corpus.parts[part].build() for part in (Part.TRAIN, Part.DEV, Part.TEST))
    dropped = dropped.model_copy(update={"overlong": corpus.dropped})
    if not len(train):
        raise no_trainable_rows(dropped, corpus.limit)
    warnings = all_warnings(surveys, corpus.tokenizer.oddities)[:MOST_WARNINGS]
    data = DataStatus(
        rows=RowCounts(train=len(train), dev=len(dev), test=len(test), unused=count(parts, Part.UNUSED)),
        dropped=dropped,
        truncated=corpus.truncated,
        tokens=len(train.ids),
        supervised_tokens=int(np.count_nonzero(train.supervised)),
        max_length=int(train.lengths.max()),
        report_uri=uri_of(store, prepared_key(REPORT_FILE)),
        warnings=[shortened(warning, STATUS_WARNING_LENGTH) for warning in warnings],
    )
    index = PreparedIndex(
        effective_hyperparameters=effective_hyperparameters(spec.training, len(train), len(dev), corpus.limit),
        resolved=resolved,
        data=data,
        datasets=[_digest(found) for found in surveys],
        end_token_id=corpus.tokenizer.end_id,
    )
    return Prepared(train, dev, test, corpus.references, index)


def check_evaluation(prepared: Prepared, training: TrainingSpec, limit: int | None) -> None:
    """What would otherwise be found out once trained. Raises RunError: LabelUnknown, GateUnmeasurable."""
    rows, references = prepared.evaluated()
    check_labels(references, training)
    check_measurable(training.evaluation.gate, len(rows), len(continuable(references, limit)))


def all_warnings(surveys: list[Survey], oddities: Oddities) -> list[str]:
    """What a user should know and need not mend."""
    found = [warning for of in surveys for warning in of.warnings]
    if oddities.unknown:
        found.append(f"{oddities.unknown} rows hold a character that the tokenizer does not know")
    if oddities.special:
        found.append(f"{oddities.special} rows hold the text of a special token, which the model sees as that token")
    if oddities.lossy:
        found.append(f"the tokenizer does not give back {oddities.lossy} rows exactly as they were")
    return found


def no_trainable_rows(dropped: DroppedCounts, limit: int) -> RunError:
    """Nothing is left to train on, and why."""
    message = (
        f"no row is left to train on: {dropped.empty} have an empty completion, {dropped.overlong} are longer than "
        f"hyperparameters.maxSeqLength {limit}, {dropped.duplicate} repeat a dev or test row"
    )
    remedy = "Give rows with a completion, or raise hyperparameters.maxSeqLength."
    return RunError(FailureClass.INVALID_DATA, "NoTrainableRows", message, remedy)


def write_report(store: Store, report: DataReport) -> None:
    """Write `prepared/report.json`."""
    store.put_bytes(prepared_key(REPORT_FILE), report.model_dump_json(by_alias=True, indent=1).encode())


def _digest(found: Survey) -> DatasetDigest:
    dataset = found.file.dataset
    return DatasetDigest(name=dataset.name, uri=dataset.uri, sha256=found.file.sha256, rows=found.rows)
