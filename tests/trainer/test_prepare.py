"""The prepare stage as a whole: what it writes, and how each mistake is told."""

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from finetune_api.run import RunResult, RunSpec
from finetune_trainer.errors import RunError
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import Prepared, read_prepared
from finetune_trainer.store import open_store

from tests.trainer.runs import PAIR_TEMPLATES, a_dataset, a_run, some_pairs, write_jsonl
from tests.trainer.test_columnar import write_arrow_file, write_arrow_stream, write_parquet
from tests.trainer.tiny import a_model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = a_model_folder(tmp_path_factory.mktemp("model"), weights=False)
    (folder / "model.safetensors").write_bytes(b"never read by prepare")
    return folder


def run_prepare(spec: RunSpec) -> RunResult:
    return prepare(spec, open_store(spec.output_uri, spec.storage), lambda line: None)


def prepared_by(spec: RunSpec) -> Prepared:
    run_prepare(spec)
    return read_prepared(open_store(spec.output_uri, spec.storage), Path(spec.scratch_directory))


def report_of(spec: RunSpec) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(open_store(spec.output_uri, spec.storage).get_bytes("prepared/report.json"))
    return found


def a_refusal(spec: RunSpec) -> RunError:
    with pytest.raises(RunError) as caught:
        run_prepare(spec)
    assert "\n" not in caught.value.message
    assert caught.value.remedy
    assert not any("index.json" in item.key for item in open_store(spec.output_uri, spec.storage).list())
    return caught.value


def test_rows_are_counted_tokenised_and_read_back_as_they_were_written(tmp_path: Path, model: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*some_pairs(10), {"prompt": "p", "completion": ""}])
    split = {"trainPercentage": 60, "devPercentage": 20}
    spec = a_run(tmp_path, model, [a_dataset(path)], split=split, hyperparameters={"trainBatchSize": 2, "epochs": 1})
    result = run_prepare(spec)
    prepared = read_prepared(open_store(spec.output_uri, spec.storage), Path(spec.scratch_directory))
    assert result.data is not None
    rows, dropped = result.data.rows, result.data.dropped
    assert rows.train + rows.dev + rows.test + rows.unused + dropped.empty == 11
    assert (len(prepared.train), len(prepared.dev), len(prepared.test)) == (rows.train, rows.dev, 0)
    assert result.data == prepared.index.data
    assert result.data.tokens == len(prepared.train.ids)
    assert result.data.supervised_tokens == int(prepared.train.supervised.sum())
    assert result.effective_hyperparameters is not None
    assert result.effective_hyperparameters.total_steps == -(-rows.train // 2)
    assert result.resolved is not None
    assert result.resolved.parameters
    assert 0 < (result.resolved.trainable_parameters or 0) < result.resolved.parameters


def test_two_datasets_of_one_name_are_refused(tmp_path: Path, model: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", some_pairs(3))
    error = a_refusal(a_run(tmp_path, model, [a_dataset(rows), a_dataset(rows, role="test")]))
    assert (error.reason, error.message) == ("RunFileInvalid", "datasets[].name: more than one is called 'faq'")


def test_references_stand_in_the_order_of_their_rows(tmp_path: Path, model: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", some_pairs(3))
    test = write_jsonl(tmp_path / "test.jsonl", some_pairs(4, "test"))
    spec = a_run(tmp_path, model, [a_dataset(train), a_dataset(test, "held-out", role="test")])
    prepared = prepared_by(spec)
    references = prepared.references["test"]
    assert [reference.row for reference in references] == [0, 1, 2, 3]
    for number, reference in enumerate(references):
        ids, supervised = prepared.test.row(number)
        assert (reference.prompt, reference.completion) == (f"test {number}:", f" answer {number}")
        assert ids[: len(reference.prompt_ids)].tolist() == reference.prompt_ids
        assert supervised.tolist() == [False] * len(reference.prompt_ids) + [True] * (
            len(ids) - len(reference.prompt_ids)
        )


def test_names_that_are_no_text_are_told_as_they_are(tmp_path: Path, model: Path) -> None:
    """Half a surrogate pair in a column's name, and a byte in a file's name that is not UTF-8."""
    rows = [row | {"\ud83d": "x"} for row in some_pairs(4)]
    for name, part in ((b"caf\xe9.jsonl", rows[:2]), (b"tea.jsonl", rows[2:])):
        write_jsonl(tmp_path / "rows" / os.fsdecode(name), part)
    spec = a_run(tmp_path, model, [a_dataset(tmp_path / "rows")])
    assert run_prepare(spec).data is not None
    [dataset] = report_of(spec)["datasets"]
    assert dataset["extraColumns"] == ["\ud83d"]
    assert [os.fsencode(uri.rpartition("/")[2]) for uri in dataset["firstFiles"]] == [b"caf\xe9.jsonl", b"tea.jsonl"]


def test_the_same_run_prepares_the_same_bytes(tmp_path: Path, model: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", some_pairs(20))
    split = {"trainPercentage": 80, "devPercentage": 20}
    digests = []
    for folder in ("one", "two"):
        spec = a_run(tmp_path / folder, model, [a_dataset(path)], split=split)
        digests.append(prepared_by(spec).index.files)
    assert digests[0] == digests[1]


def test_the_same_rows_in_any_format_give_the_same_ids(tmp_path: Path, model: Path) -> None:
    rows = some_pairs(4)
    lines = [f"{row['prompt']}\t{row['completion']}\n" for row in rows]
    data = tmp_path / "data"
    jsonl = write_jsonl(data / "rows.jsonl", rows)
    (data / "rows.json").write_text(json.dumps(rows))
    (data / "rows.csv").write_text("".join(["prompt,completion\n", *lines]).replace("\t", ","))
    (data / "rows.tsv").write_text("".join(["prompt\tcompletion\n", *lines]))
    (data / "rows.jsonl.gz").write_bytes(gzip.compress(jsonl.read_bytes()))
    write_parquet(data / "rows.parquet", rows)
    write_arrow_file(data / "file.arrow", rows)
    write_arrow_stream(data / "stream.arrow", rows)
    write_jsonl(data / "folder" / "a.jsonl", rows[:1])
    write_jsonl(data / "folder" / "b.jsonl", rows[1:])
    found = {
        path.name: prepared_by(a_run(tmp_path / path.name, model, [a_dataset(path)])).index.files["tokens.safetensors"]
        for path in data.iterdir()
    }
    assert len(found) == 9
    assert len(set(found.values())) == 1


def test_a_text_file_is_learned_line_by_line_and_long_lines_are_cut(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("abcdefghi\n\nabc\n")
    hyperparameters = {"maxSeqLength": 4, "overlong": "split", "trainBatchSize": 1, "epochs": 1}
    result = run_prepare(a_run(tmp_path, model, [a_dataset(path)], hyperparameters=hyperparameters))
    data, effective = result.data, result.effective_hyperparameters
    assert data is not None
    assert effective is not None
    assert (data.rows.train, data.cut, data.sequences, data.tokens) == (2, 1, 4, 14)
    assert effective.total_steps == 4


def test_splitting_cuts_no_row_that_has_a_prompt(tmp_path: Path, model: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", some_pairs(2))
    hyperparameters = {"maxSeqLength": 8, "overlong": "split"}
    refusal = a_refusal(a_run(tmp_path, model, [a_dataset(path)], hyperparameters=hyperparameters))
    assert (refusal.failure_class, refusal.reason) == ("InvalidData", "RowsOverlong")
    assert "2 rows with a prompt, which overlong: split does not cut" in refusal.message


CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('system goes first') }}"
    "{% endif %}{{ m.role }}:{{ m.content }}<pad>\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def talking_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose chat template ends turns with a token that is not the end token."""
    folder = a_model_folder(tmp_path_factory.mktemp("talking"), weights=False)
    (folder / "model.safetensors").write_bytes(b"never read by prepare")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": CHAT_TEMPLATE}))
    return folder


def a_talk(*turns: str) -> dict[str, Any]:
    """Turns of the user and the assistant."""
    roles = ["user", "assistant"] * len(turns)
    return {"messages": [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]}


def test_chats_are_written_by_the_models_template_and_only_answers_are_learned(
    tmp_path: Path, talking_model: Path
) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [a_talk("a", "B", "c", "D"), a_talk("x", "Y"), a_talk("q", "")])
    test = write_jsonl(tmp_path / "test.jsonl", [a_talk("x", "Y"), a_talk("m", "N", "o", "P")])
    spec = a_run(tmp_path, talking_model, [a_dataset(train), a_dataset(test, "held", role="test")])
    prepared = prepared_by(spec)
    data = prepared.index.data
    assert (data.rows.train, data.dropped.empty, data.dropped.duplicate) == (1, 1, 1)
    assert [sample["pieces"] for sample in report_of(spec)["samples"]] == [
        [
            {"text": "user:a<pad>\nassistant:", "learned": False},
            {"text": "B<pad>", "learned": True},
            {"text": "\nuser:c<pad>\nassistant:", "learned": False},
            {"text": "D<pad>", "learned": True},
        ]
    ]
    asked = [(reference.prompt, reference.completion) for reference in prepared.references["test"]]
    assert asked == [
        ("user:x<pad>\nassistant:", "Y"),
        ("user:m<pad>\nassistant:N<pad>\nuser:o<pad>\nassistant:", "P"),
    ]
    pad, end = prepared.index.turn_end_ids[0], prepared.index.end_token_id
    assert prepared.index.end_ids == [end, pad]
    assert prepared.train.ids[-1] == pad
    assert prepared.index.template_date is not None


def test_a_chat_that_the_template_refuses_is_told_with_its_line(tmp_path: Path, talking_model: Path) -> None:
    late = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "system", "content": "b"},
            *a_talk("c", "D")["messages"],
        ]
    }
    path = write_jsonl(tmp_path / "rows.jsonl", [a_talk("a", "B"), late])
    spec = a_run(tmp_path, talking_model, [a_dataset(path)])
    refusal = a_refusal(spec)
    assert (refusal.failure_class, refusal.reason) == ("InvalidData", "RowInvalid")
    assert refusal.message.endswith("line 2: the model's chat template refuses the messages: system goes first")
    assert report_of(spec)["problems"]["first"][0]["column"] == "messages"


def test_chats_need_a_model_with_a_chat_template(tmp_path: Path, model: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [a_talk("a", "B")])
    refusal = a_refusal(a_run(tmp_path, model, [a_dataset(path)]))
    assert (refusal.failure_class, refusal.reason) == ("InvalidConfig", "NoChatTemplate")


def test_a_long_chat_is_dropped_and_never_shortened(tmp_path: Path, talking_model: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [a_talk("a", "B"), a_talk("a" * 90, "B")])
    hyperparameters = {"maxSeqLength": 60, "overlong": "truncate"}
    data = run_prepare(a_run(tmp_path, talking_model, [a_dataset(path)], hyperparameters=hyperparameters)).data
    assert data is not None
    assert (data.rows.train, data.dropped.overlong, data.truncated) == (1, 1, 0)


def test_strange_rows_are_noted_with_their_lines(tmp_path: Path, model: Path) -> None:
    rows: list[dict[str, Any]] = [
        *some_pairs(2),
        {"prompt": "a", "completion": ""},
        {"prompt": "a", "completion": None},
        {"prompt": "a", "completion": " \n"},
        {"prompt": "a" * 50, "completion": "b"},
        some_pairs(1)[0],
    ]
    train = write_jsonl(tmp_path / "rows.jsonl", rows)
    held = write_jsonl(tmp_path / "held.jsonl", [some_pairs(2)[1]])
    datasets = [a_dataset(train), a_dataset(held, "held", role="dev")]
    spec = a_run(tmp_path, model, datasets, hyperparameters={"maxSeqLength": 40, "overlong": "drop"})
    data = run_prepare(spec).data
    assert data is not None
    dropped = data.dropped
    assert (dropped.empty, dropped.overlong, dropped.duplicate, data.rows.train) == (2, 1, 1, 3)
    report = report_of(spec)
    assert report["datasets"][0]["notes"] == [
        {"kind": kind, "rows": 1, "first": [f"file://{train}, line {line}"]}
        for kind, line in [("blank", 5), ("duplicate", 2), ("empty", 3), ("null", 4), ("overlong", 6)]
    ]
    assert report["repeats"] == 1
    assert any("1 rows have a completion of blanks alone" in warning for warning in data.warnings)


def test_what_was_read_is_resolved_and_a_later_try_must_read_the_same(tmp_path: Path, model: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", some_pairs(3))
    spec = a_run(tmp_path, model, [a_dataset(path)])
    resolved = run_prepare(spec).resolved
    assert resolved is not None
    assert resolved.dataset_revisions == {"faq": f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"}
    first = read_prepared(open_store(spec.output_uri, spec.storage), tmp_path).index.files
    assert run_prepare(spec).resolved == resolved
    assert read_prepared(open_store(spec.output_uri, spec.storage), tmp_path).index.files == first
    write_jsonl(path, some_pairs(4))
    elsewhere = a_run(tmp_path / "elsewhere", model, [a_dataset(path)]).model_copy(update={"resolved": resolved})
    for run in (spec, elsewhere):  # A try that was lost after it wrote everything, and one whose answer came.
        with pytest.raises(RunError, match="dataset 'faq'") as caught:
            run_prepare(run)
        assert (caught.value.failure_class, caught.value.reason) == ("InvalidData", "DatasetChanged")


def test_each_dataset_is_split_on_its_own_and_others_change_nothing(tmp_path: Path, model: Path) -> None:
    ten = a_dataset(write_jsonl(tmp_path / "ten.jsonl", some_pairs(10, "ten")), "ten")
    three = a_dataset(write_jsonl(tmp_path / "three.jsonl", some_pairs(3, "three")), "three")
    split = {"trainPercentage": 80, "devPercentage": 20}
    alone = prepared_by(a_run(tmp_path / "a", model, [ten], split=split))
    both = prepared_by(a_run(tmp_path / "b", model, [three, ten], split=split))
    assert (len(both.train), len(both.dev)) == (8 + 2, 2 + 1)
    rows = {(reference.dataset, reference.row) for reference in both.references["dev"]}
    assert {("ten", reference.row) for reference in alone.references["dev"]} <= rows


def test_a_train_row_that_repeats_a_dev_or_test_row_is_dropped_and_repeats_in_train_stay(
    tmp_path: Path, model: Path
) -> None:
    pairs = some_pairs(3)
    train = write_jsonl(tmp_path / "train.jsonl", [*pairs, pairs[1], pairs[1], pairs[2]])
    held = write_jsonl(tmp_path / "dev.jsonl", [pairs[0], pairs[2]])
    spec = a_run(tmp_path, model, [a_dataset(train), a_dataset(held, "held", role="dev")])
    data = run_prepare(spec).data
    assert data is not None
    assert (data.dropped.duplicate, data.rows.train, data.rows.dev) == (3, 3, 2)


def test_max_rows_reads_no_further(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(some_pairs(1)[0]) + "\nnonsense\n")
    data = run_prepare(a_run(tmp_path, model, [a_dataset(path, maxRows=1)])).data
    assert data is not None
    assert data.rows.train == 1


@pytest.mark.parametrize(("overlong", "train", "dropped", "truncated"), [("drop", 1, 2, 0), ("truncate", 2, 1, 1)])
def test_overlong_rows_are_dropped_or_truncated_and_counted(
    tmp_path: Path, model: Path, overlong: str, train: int, dropped: int, truncated: int
) -> None:
    rows = [
        {"prompt": "ab", "completion": "c"},
        {"prompt": "abcdef", "completion": "gh"},
        {"prompt": "a", "completion": "bcdef"},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    hyperparameters = {"maxSeqLength": 6, "overlong": overlong}
    data = run_prepare(a_run(tmp_path, model, [a_dataset(path)], hyperparameters=hyperparameters)).data
    assert data is not None
    assert (data.rows.train, data.dropped.overlong, data.truncated) == (train, dropped, truncated)
    assert data.max_length <= 6


def test_overlong_rows_are_an_error_by_default_with_count_longest_and_fitting_limit(
    tmp_path: Path, model: Path
) -> None:
    rows = [*some_pairs(2), {"prompt": "x" * 30, "completion": "y"}, {"prompt": "x" * 20, "completion": "y"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    spec = a_run(tmp_path, model, [a_dataset(path)], hyperparameters={"maxSeqLength": 20})
    refusal = a_refusal(spec)
    assert (refusal.failure_class, refusal.reason) == ("InvalidData", "RowsOverlong")
    assert refusal.message == (
        f"2 rows are longer than hyperparameters.maxSeqLength 20; the longest is dataset 'faq', file://{path}, line 3 "
        "with 32 tokens"
    )
    assert "Set hyperparameters.maxSeqLength to 32" in refusal.remedy
    assert [problem["line"] for problem in report_of(spec)["problems"]["first"]] == [3, 4]


def test_a_row_longer_than_the_model_can_take_is_told_so(tmp_path: Path, model: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "x" * 300, "completion": "y"}])
    refusal = a_refusal(a_run(tmp_path, model, [a_dataset(path)]))
    assert "The model's limit is 256" in refusal.remedy


BAD_LINES = {
    "missing column": ('{"prompt": "a"}', "column 'completion' is missing; there are 'prompt'"),
    "not JSON": ('{"prompt": ', "the line is not JSON"),
    "a list": ('{"prompt": ["a"], "completion": "b"}', "column 'prompt' holds a list"),
    "half a character": ('{"prompt": "a", "completion": "\\ud800"}', "half of a surrogate pair"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_row_is_told_with_dataset_file_and_line(tmp_path: Path, model: Path, kind: str) -> None:
    line, words = BAD_LINES[kind]
    good = json.dumps(some_pairs(1)[0])
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{good}\n{good}\n{line}\n")
    refusal = a_refusal(a_run(tmp_path, model, [a_dataset(path)]))
    assert (refusal.failure_class, refusal.reason) == ("InvalidData", "RowInvalid")
    assert refusal.message.startswith(f"dataset 'faq', file://{path}, line 3: ")
    assert words in refusal.message


@pytest.mark.parametrize("how", ["template", "type"])
def test_a_first_row_that_lacks_a_column_is_told_like_any_later_one(tmp_path: Path, model: Path, how: str) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a"}, *some_pairs(2)])
    given = {"type": "promptCompletion"} if how == "type" else PAIR_TEMPLATES
    refusal = a_refusal(a_run(tmp_path, model, [a_dataset(path, **given)]))
    assert (refusal.failure_class, refusal.reason) == ("InvalidData", "RowInvalid")
    assert refusal.message == (
        f"dataset 'faq', file://{path}, line 1: column 'completion' is missing; there are 'prompt'"
    )


def test_a_template_column_that_no_row_has_is_told_with_the_first_rows_line(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in [{"prompt": "a", "completions": "b"}] * 3))
    refusal = a_refusal(a_run(tmp_path, model, [a_dataset(path, **PAIR_TEMPLATES)]))
    assert (refusal.failure_class, refusal.reason) == ("InvalidConfig", "TemplateInvalid")
    assert refusal.message == (
        f"dataset 'faq', file://{path}, line 2: completionTemplate names column 'completion', which is not there; "
        "there are 'prompt', 'completions'"
    )
    assert "Did you mean <<completions>>?" in refusal.remedy


@pytest.mark.parametrize(
    ("templates", "words"),
    [
        ({}, "columns 'prompt' make no row type; promptCompletion lacks column 'completion'"),
        ({"promptTemplate": "<<prompt>>"}, "exactly 1 column named target, output or completion; there are only"),
    ],
)
def test_what_the_first_row_alone_tells_is_told_with_its_line(
    tmp_path: Path, model: Path, templates: dict[str, str], words: str
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a"}, *some_pairs(2)])
    refusal = a_refusal(a_run(tmp_path, model, [a_dataset(path, **templates)]))
    assert refusal.message.startswith(f"dataset 'faq', file://{path}, line 1: ")
    assert words in refusal.message


def test_the_first_twenty_problems_and_the_total_are_in_the_report(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(some_pairs(1)[0]) + "\n" + "nonsense\n" * 30)
    spec = a_run(tmp_path, model, [a_dataset(path)])
    assert "(and 29 more problems, see file://" in a_refusal(spec).message
    problems = report_of(spec)["problems"]
    assert (problems["total"], len(problems["first"])) == (30, 20)
    assert problems["first"][0]["line"] == 2


@pytest.mark.parametrize(("content", "words"), [("", "is empty"), ("\n \n", "holds no row"), ("[]", "holds no row")])
def test_a_file_without_rows_is_refused(tmp_path: Path, model: Path, content: str, words: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    refusal = a_refusal(a_run(tmp_path, model, [a_dataset(path)]))
    assert (refusal.failure_class, refusal.reason) == ("InvalidData", "NoRows")
    assert refusal.message == f"dataset 'faq', file://{path} {words}"


def test_a_missing_file_is_refused(tmp_path: Path, model: Path) -> None:
    refusal = a_refusal(a_run(tmp_path, model, [a_dataset(tmp_path / "nope.jsonl")]))
    assert (refusal.failure_class, refusal.reason) == ("InvalidData", "DatasetNotFound")
    assert "nope.jsonl: the file is not there" in refusal.message


def test_a_file_of_unknown_format_is_refused(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "rows.dat"
    path.write_text("a,b\n1,2\n")
    refusal = a_refusal(a_run(tmp_path, model, [a_dataset(path)]))
    assert (refusal.failure_class, refusal.reason) == ("InvalidData", "FormatUnknown")


def test_a_template_must_work_for_every_dataset(tmp_path: Path, model: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", [{"source": "a", "reference": "b"}])
    two = write_jsonl(tmp_path / "two.jsonl", [{"source": "a", "target": "b"}])
    datasets = [a_dataset(one, "one"), a_dataset(two, "two")]
    templates = {"promptTemplate": "<<source>>", "completionTemplate": "<<reference>>"}
    refusal = a_refusal(a_run(tmp_path, model, datasets, **templates))
    assert refusal.reason == "TemplateInvalid"
    assert "dataset 'two'" in refusal.message
    assert "'reference'" in refusal.message


@pytest.mark.parametrize(
    ("rows", "split", "part"),
    [(99, {"trainPercentage": 0.5}, "train"), (2, {"trainPercentage": 80, "devPercentage": 20}, "dev")],
)
def test_a_split_without_rows_for_a_part_is_refused(
    tmp_path: Path, model: Path, rows: int, split: dict[str, float], part: str
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", some_pairs(rows))
    refusal = a_refusal(a_run(tmp_path, model, [a_dataset(path)], split=split))
    assert (refusal.failure_class, refusal.reason) == ("InvalidConfig", "EmptySplit")
    assert f"leaves no {part} row: {rows} rows" in refusal.message


def test_when_no_row_is_left_the_reasons_are_counted(tmp_path: Path, model: Path) -> None:
    rows = [{"prompt": "a", "completion": ""}, {"prompt": "abc", "completion": "abcdefgh"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    hyperparameters = {"maxSeqLength": 6, "overlong": "drop"}
    refusal = a_refusal(a_run(tmp_path, model, [a_dataset(path)], hyperparameters=hyperparameters))
    assert (refusal.failure_class, refusal.reason) == ("InvalidData", "NoTrainableRows")
    assert "1 have an empty completion, 1 are longer" in refusal.message


def test_a_warmup_longer_than_the_run_is_refused(tmp_path: Path, model: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", some_pairs(4))
    refusal = a_refusal(a_run(tmp_path, model, [a_dataset(path)], hyperparameters={"warmupSteps": 3}))
    assert refusal.reason == "WarmupTooLong"


def test_unknown_lora_targets_are_refused(tmp_path: Path, model: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", some_pairs(4))
    method = {"type": "lora", "lora": {"targetModules": ["q_proj", "nope"]}}
    refusal = a_refusal(a_run(tmp_path, model, [a_dataset(path)], method=method))
    assert refusal.reason == "TargetModulesNotFound"
    assert "'nope'" in refusal.message


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "BertModel"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "T5For"),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "ViTForImageClassification"),
    ],
)
def test_a_model_that_generates_no_text_is_refused_by_its_architecture(
    tmp_path: Path, config: dict[str, Any], architecture: str
) -> None:
    folder = a_model_folder(tmp_path / "other", weights=False)
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "config.json").write_text(json.dumps(config))
    path = write_jsonl(tmp_path / "rows.jsonl", some_pairs(4))
    refusal = a_refusal(a_run(tmp_path, folder, [a_dataset(path)]))
    assert (refusal.failure_class, refusal.reason) == ("InvalidConfig", "ModelUnsupported")
    assert architecture in refusal.message


def test_the_report_shows_columns_lengths_samples_and_warnings(tmp_path: Path, model: Path) -> None:
    rows = [{"prompt": f"p{number}", "completion": "yes", "note": "x"} for number in range(5)]
    spec = a_run(tmp_path, model, [a_dataset(write_jsonl(tmp_path / "rows.jsonl", rows))])
    data = run_prepare(spec).data
    report = report_of(spec)
    assert report["datasets"][0]["extraColumns"] == ["note"]
    assert sum(entry["rows"] for entry in report["lengths"]) == 5
    assert report["supervisedShare"] == pytest.approx(4 / 6)
    assert [sample["pieces"] for sample in report["samples"]] == [
        [{"text": f"p{number}", "learned": False}, {"text": "yes<eos>", "learned": True}] for number in range(3)
    ]
    assert (report["stepsPerEpoch"], report["totalSteps"]) == (1, 3)
    assert data is not None
    assert report["warnings"] == data.warnings
    assert "in 5 rows prompt and completion meet letter to letter" in data.warnings[0]


def test_tampered_prepared_data_is_refused(tmp_path: Path, model: Path) -> None:
    spec = a_run(tmp_path, model, [a_dataset(write_jsonl(tmp_path / "rows.jsonl", some_pairs(3)))])
    run_prepare(spec)
    store = open_store(spec.output_uri, spec.storage)
    store.put_bytes("prepared/references.jsonl", b"other")
    with pytest.raises(RunError, match=r"references\.jsonl is not the file that the index names") as caught:
        read_prepared(store, tmp_path)
    assert caught.value.reason == "PreparedDataUnusable"


def test_prepared_data_of_a_later_release_is_read_all_the_same(tmp_path: Path, model: Path) -> None:
    spec = a_run(tmp_path, model, [a_dataset(write_jsonl(tmp_path / "rows.jsonl", some_pairs(3)))])
    run_prepare(spec)
    store = open_store(spec.output_uri, spec.storage)
    index = json.loads(store.get_bytes("prepared/index.json"))
    for part in (index, index["data"], index["datasets"][0], index["resolved"]):
        part["addedLater"] = 1
    store.put_bytes("prepared/index.json", json.dumps(index).encode())
    assert len(read_prepared(store, tmp_path).train) == 3


def test_data_that_was_never_prepared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no file"):
        read_prepared(
            open_store(f"file://{tmp_path}", a_run(tmp_path, "hf://a/b", [a_dataset(tmp_path)]).storage), tmp_path
        )
