"""The prepare stage: everything that can be wrong is found here, on a CPU, before anybody asks for a GPU.

Fetch the data, read every row, split, fetch the model's config and tokenizer, tokenise, check the model, and write the
prepared folder. The data report is written whether the rows can be used or not.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

from finetune_api.findings import DataStatus, DroppedCounts, Resolved, RowCounts
from finetune_api.names import STATUS_WARNING_LENGTH, FailureClass
from finetune_api.resource import TrainingSpec
from finetune_api.run import RunResult, RunSpec
from finetune_api.sources import Dataset
from finetune_api.words import shortened

from finetune_trainer.answers import answer_pattern, check_labels
from finetune_trainer.corpus import Corpus
from finetune_trainer.data_files import public_uri
from finetune_trainer.data_report import DataReport, data_report, length_histogram, sample_entry
from finetune_trainer.datasets import fetch_dataset
from finetune_trainer.division import count, divide, repeats
from finetune_trainer.effective import effective_hyperparameters, sequence_length, steps_per_epoch
from finetune_trainer.errors import RunError, quoted
from finetune_trainer.fetch import ModelFiles, fetch_model
from finetune_trainer.gate import check_measurable
from finetune_trainer.model_config import check_decoder, position_limit, read_config
from finetune_trainer.prepared import (
    REPORT_FILE,
    TOKENS_FILE,
    DatasetDigest,
    Prepared,
    PreparedIndex,
    continuable,
    open_prepared,
    prepared_key,
    read_index,
    write_prepared,
)
from finetune_trainer.problems import Problems
from finetune_trainer.split import KEPT_PARTS, Part, Parts
from finetune_trainer.store import Store, uri_of
from finetune_trainer.survey import Survey, survey
from finetune_trainer.token_file import write_token_file
from finetune_trainer.tokens import RowTokenizer

Say = Callable[[str], None]
"""Takes one line about what is going on."""

UNCHECKED = "nobody has said how much memory {} has (settings.gpus[].memory), so whether the model fits is not checked"

MOST_WARNINGS = 8
"""Warnings that the status takes; the report has all."""


def prepare(spec: RunSpec, store: Store, say: Say) -> RunResult:
    """Prepare a run below `store`, the run's root. Raises RunError for whatever stands in the way."""
    answer_pattern(spec.training.evaluation.answer_pattern)  # Only used once trained, and by then too late to refuse.
    scratch, earlier = Path(spec.scratch_directory), read_index(store)
    surveys = read_datasets(spec, store, say, _known_revisions(spec, earlier))
    parts = divide(surveys, spec.training)
    model = fetch_model(spec, scratch, weights=False)
    say(f"model {model.uri} at revision {model.revision}")
    found = check_model(spec, model)
    limit = found.position_limit
    resolved = found.resolved.model_copy(
        update={"dataset_revisions": {of.source.dataset.name: of.source.revision for of in surveys}}
    )
    max_length = sequence_length(spec.training.hyperparameters.max_seq_length, limit)
    today = (earlier and earlier.template_date) or datetime.now(UTC).date()
    corpus = tokenise(surveys, parts, spec, model, max_length, today)
    check_corpus(corpus, surveys, store, limit)
    check_vocabulary(corpus, found.vocabulary)
    index = make_index(spec, store, surveys, parts, corpus, replace(found, resolved=resolved), today)
    folder = prepared_folder(scratch)
    write_token_file(folder / TOKENS_FILE, {part.name.lower(): writer for part, writer in corpus.parts.items()})
    prepared = open_prepared(folder, index)
    check_evaluation(prepared, spec.training, limit)
    write_report(store, whole_report(surveys, parts, corpus, index, found.warnings))
    index = look_ahead(spec, model, prepared, say)
    write_prepared(store, folder, index)
    rows = index.data.rows
    say(f"prepared {rows.train} train, {rows.dev} dev and {rows.test} test rows, {index.data.tokens} tokens")
    return index.result()


def read_datasets(spec: RunSpec, store: Store, say: Say, known: Mapping[str, str]) -> list[Survey]:
    """Fetch and read every dataset once. Raises RunError after all have been read, and reports the problems.

    `known` are the revisions that an earlier try found, by dataset.
    """
    problems, surveys = Problems(), []
    _check_names(spec.training.datasets)
    for dataset in spec.training.datasets:
        source = fetch_dataset(dataset, spec, Path(spec.scratch_directory) / "datasets", known.get(dataset.name))
        surveys.append(survey(source, spec.training, problems))
        files = f" in {len(source.files)} files" if len(source.files) > 1 else ""
        say(f"{source.where}: {surveys[-1].rows} rows{files}, {source.revision}")
    refuse_problems(problems, surveys, store)
    return surveys


def _check_names(datasets: list[Dataset]) -> None:
    """Raise RunError for a name that two have, as the API server does: one's files would take the other's place."""
    twice = [name for name, count in Counter(dataset.name for dataset in datasets).items() if count > 1]
    if twice:
        message = f"datasets[].name: more than one is called {quoted(twice)}"
        raise RunError(FailureClass.INVALID_CONFIG, "RunFileInvalid", message, "Give each a name of its own.")


def refuse_problems(problems: Problems, surveys: list[Survey], store: Store) -> None:
    """Raises RunError where there are any, and reports them."""
    if problems.total:
        write_report(store, data_report(surveys, problems))
        raise problems.error(uri_of(store, prepared_key(REPORT_FILE)))


def _known_revisions(spec: RunSpec, earlier: PreparedIndex | None) -> Mapping[str, str]:
    """From the status or, where a try was lost after it had written everything, from what it wrote."""
    return spec.resolved.dataset_revisions or (earlier.resolved.dataset_revisions if earlier else {})


@dataclass(frozen=True)
class ModelFindings:
    """What was found out about the model."""

    resolved: Resolved
    position_limit: int | None
    vocabulary: int
    """Ids from 0 that it has an embedding for."""
    packing: bool
    """Whether rows are packed: asked for, and possible."""
    warnings: list[str]


def check_model(spec: RunSpec, model: ModelFiles) -> ModelFindings:
    """What the model's names turned out to mean, and what it can do. Imports torch, for the meta device."""
    from finetune_trainer.model import check_on_meta

    config = read_config(model.model.folder, model.model.uri)
    check_decoder(config, model.model.uri, spec.training.model.trust_remote_code)
    check = check_on_meta(model.model.folder, spec.training, model.adapter)
    found = {
        # The operator's name for it wins: a volume's mount path means nothing to a reader of the status.
        "model_uri": spec.resolved.model_uri or model.uri,
        "model_revision": model.revision,
        "parameters": check.parameters,
        "trainable_parameters": check.trainable,
    }
    resolved = spec.resolved.model_copy(update=found)
    unsure = [UNCHECKED.format(spec.gpu.name)] if spec.gpu and spec.gpu.memory_bytes is None else []
    return ModelFindings(resolved, position_limit(config), check.vocabulary, check.packing, [*check.warnings, *unsure])


def look_ahead(spec: RunSpec, model: ModelFiles, prepared: Prepared, say: Say) -> PreparedIndex:
    """The index with the plan and the time of training on the GPU that it will get, if any.

    Raises RunError (InvalidConfig, NotEnoughMemory) where the model does not fit.
    """
    if spec.gpu is None:
        return prepared.index
    from finetune_trainer.foresight import foresee, training_estimate

    plan, estimate = foresee(spec, spec.gpu, model, prepared), training_estimate(spec.gpu, prepared)
    if plan.estimated_bytes:
        say(f"training will take an estimated {plan.estimated_bytes / 2**30:.2f} GiB of GPU {spec.gpu.name}")
    return prepared.index.model_copy(update={"plan": plan, "estimate": estimate})


def tokenise(
    surveys: list[Survey], parts: list[Parts], spec: RunSpec, model: ModelFiles, max_length: int, today: date
) -> Corpus:
    """All rows that are kept, as tokens on the disk. Raises RunError (NoChatTemplate) for chats without a template."""
    from finetune_trainer.vocabulary import load_chat_writer, load_tokenizer

    trusted = spec.training.model.trust_remote_code
    tokenizer = RowTokenizer(*load_tokenizer(model.model.folder, trusted))
    chats = None
    if any(found.has_chats for found in surveys):
        chats = load_chat_writer(model.model.folder, list(tokenizer.specials.values()), today, trusted)
    folder = prepared_folder(Path(spec.scratch_directory))
    with closing(Corpus(tokenizer, spec.training, max_length, folder, chats)) as corpus:
        for found, part in zip(surveys, parts, strict=True):
            corpus.add(found, part)
    return corpus


def prepared_folder(scratch: Path) -> Path:
    """Where the files are made before they are stored."""
    return scratch / "write-prepared"


def check_corpus(corpus: Corpus, surveys: list[Survey], store: Store, position_limit: int | None) -> None:
    """Raises RunError for chats that the template refuses and rows that are too long, and reports them."""
    refuse_problems(corpus.problems, surveys, store)
    if corpus.refused.total:
        write_report(store, data_report(surveys, corpus.refused))
        raise corpus.lengths_error(position_limit)


def check_vocabulary(corpus: Corpus, vocabulary: int) -> None:
    """Raises RunError (InvalidConfig, TokenizerMismatch) for an id that the model has no embedding for."""
    highest = max(part.highest for part in corpus.parts.values())
    if highest >= vocabulary:
        text = corpus.tokenizer.tokenizer.id_to_token(highest)
        message = f"the tokenizer gives id {highest} ({text!r}), and the model has {vocabulary} embeddings"
        remedy = "Give the model its own tokenizer, or save it with resize_token_embeddings."
        raise RunError(FailureClass.INVALID_CONFIG, "TokenizerMismatch", message, remedy)


def make_index(
    spec: RunSpec,
    store: Store,
    surveys: list[Survey],
    parts: list[Parts],
    corpus: Corpus,
    model: ModelFindings,
    today: date,
) -> PreparedIndex:
    """Counts and settings as they are written. Raises RunError where no train row is left."""
    train, dev = corpus.parts[Part.TRAIN], corpus.parts[Part.DEV]
    dropped = DroppedCounts(
        empty=count(parts, Part.EMPTY), overlong=corpus.dropped, duplicate=count(parts, Part.DUPLICATE)
    )
    if not len(train):
        raise no_trainable_rows(dropped, corpus.limit)
    rows = {part.name.lower(): corpus.rows[part] for part in KEPT_PARTS}
    warnings = all_warnings(surveys, corpus, model.warnings)[:MOST_WARNINGS]
    data = DataStatus(
        rows=RowCounts(**rows, unused=count(parts, Part.UNUSED)),
        dropped=dropped,
        truncated=corpus.truncated,
        cut=corpus.cut,
        sequences=len(train),
        tokens=train.tokens,
        supervised_tokens=train.supervised,
        max_length=int(train.lengths.max()),
        report_uri=uri_of(store, prepared_key(REPORT_FILE)),
        warnings=[shortened(warning, STATUS_WARNING_LENGTH) for warning in warnings],
    )
    tokenizer, chats = corpus.tokenizer.tokenizer, corpus.chats
    effective = effective_hyperparameters(spec.training, len(train), len(dev), corpus.limit, spec.devices)
    return PreparedIndex(
        effective_hyperparameters=effective.model_copy(update={"packing": model.packing}),
        resolved=model.resolved,
        data=data,
        datasets=[_digest(found) for found in surveys],
        end_token_id=corpus.tokenizer.end_id,
        turn_end_ids=sorted(tokenizer.token_to_id(text) for text in chats.ends) if chats else [],
        template_date=today if chats else None,
    )


def check_evaluation(prepared: Prepared, training: TrainingSpec, limit: int | None) -> None:
    """What would otherwise be found out once trained. Raises RunError: LabelUnknown, GateUnmeasurable."""
    rows, references = prepared.evaluated()
    check_labels(references, training)
    check_measurable(training.evaluation.gate, len(rows), sum(1 for _ in continuable(references, limit)))


def whole_report(
    surveys: list[Survey], parts: list[Parts], corpus: Corpus, index: PreparedIndex, about_model: list[str]
) -> DataReport:
    """The report on data that can be used."""
    data, effective = index.data, index.effective_hyperparameters
    return data_report(
        surveys,
        Problems(),
        data=data,
        lengths=length_histogram(corpus.parts[Part.TRAIN].lengths),
        supervised_share=data.supervised_tokens / data.tokens,
        repeats=repeats(surveys, parts),
        steps_per_epoch=steps_per_epoch(corpus.given, data.sequences),
        total_steps=effective.total_steps,
        samples=[sample_entry(sample) for sample in corpus.samples],
        warnings=all_warnings(surveys, corpus, about_model),
    )


def all_warnings(surveys: list[Survey], corpus: Corpus, about_model: list[str]) -> list[str]:
    """What a user should know and need not mend, about the model first."""
    found = [*about_model, *(warning for of in surveys for warning in of.warnings)]
    oddities, chats = corpus.tokenizer.oddities, corpus.chats
    special = oddities.special + (chats.special if chats else 0)
    if oddities.unknown:
        found.append(f"{oddities.unknown} rows hold a character that the tokenizer does not know")
    if special:
        found.append(f"{special} rows hold the text of a special token, which the model sees as that token")
    if oddities.lossy:
        found.append(f"the tokenizer does not give back {oddities.lossy} rows exactly as they were")
    if chats and chats.by_turn:
        found.append(
            f"{chats.by_turn} chats are trained as one row for each answer, since the chat template writes earlier "
            "turns in another way than new ones"
        )
    if chats and chats.unclear:
        found.append(
            f"{chats.unclear} answers do not begin where the chat template's generation prompt ends; they are learned "
            "from the first character that differs"
        )
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
    """Write `prepared/report.json`. Half a surrogate pair in the name of a column or file stays the escape it was."""
    text = json.dumps(report.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False)
    store.put_bytes(prepared_key(REPORT_FILE), text.encode(errors="backslashreplace"))


def _digest(found: Survey) -> DatasetDigest:
    source = found.source
    name, uri = source.dataset.name, public_uri(source.dataset.uri)
    return DatasetDigest(name=name, uri=uri, sha256=source.sha256, rows=found.rows)
