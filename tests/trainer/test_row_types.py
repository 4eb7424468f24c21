"""Rule D of row types, where templates apply, and what a row then says."""

import re
from typing import Any

import pytest
from finetune_api.resource import TrainingSpec
from finetune_api.sources import Dataset, RowType
from finetune_trainer.errors import RowError, RunError
from finetune_trainer.pairs import RowMaker
from finetune_trainer.row_types import check_references, row_maker, template_warnings


def a_maker(columns: list[str], row_type: str = "auto", dataset: dict[str, Any] | None = None, **spec: Any) -> RowMaker:
    given = {"name": "faq", "uri": "s3://data/faq.jsonl", "type": row_type, **(dataset or {})}
    training = TrainingSpec.model_validate(
        {"model": {"uri": "s3://models/m"}, "datasets": [given], "output": {"uri": "s3://out/x"}, **spec}
    )
    return row_maker(Dataset.model_validate(given), training, columns, "dataset 'faq', s3://data/faq.jsonl")


def pair(maker: RowMaker, row: dict[str, object]) -> tuple[str, str]:
    said = maker.read(row)
    return said.prompt, said.completion


def a_refusal(columns: list[str], **given: Any) -> RunError:
    with pytest.raises(RunError) as caught:
        a_maker(columns, **given)
    return caught.value


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "I:", "text": "tx", "target": "YZ"}, ("I:tx", "YZ")),
        ({"instruction": "I:", "text": "", "target": "YZ"}, ("I:", "YZ")),
        ({"instruction": "I:", "input": "tx", "output": "YZ"}, ("I:tx", "YZ")),
        ({"instruction": "I:", "output": "YZ"}, ("I:", "YZ")),
        ({"instruction": "I:", "input": None, "output": 7}, ("I:", "7")),
        ({"prompt": "p ", "completion": " c"}, ("p ", " c")),
        ({"id": 3, "prompt": "p", "completion": "c"}, ("p", "c")),
        ({"text": "whole"}, ("", "whole")),
        ({"text": "tx", "target": "YZ"}, ("tx", "YZ")),
    ],
)
def test_the_type_is_found_from_the_columns_and_nothing_is_put_between(
    row: dict[str, object], expected: tuple[str, str]
) -> None:
    assert pair(a_maker(list(row)), row) == expected


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["question", "answer"], "make no row type"),
        (["prompt"], "make no row type; promptCompletion lacks column 'completion'"),
        (["instruction", "text"], "instruction lacks column 'target'; instruction lacks column 'output'"),
        (["prompt", "completion", "messages"], "promptCompletion and chat"),
        (["prompt", "completion", "instruction", "output"], "instruction and promptCompletion"),
        (["prompt", "completion", "text"], "promptCompletion and text"),
        (["id", "name", "instruction", "instances", "is_classification"], "'instances'"),
    ],
)
def test_columns_that_make_no_type_or_several_are_listed_and_the_type_asked_for(columns: list[str], words: str) -> None:
    refusal = a_refusal(columns)
    assert (refusal.failure_class, refusal.reason) == ("InvalidData", "RowTypeUnknown")
    assert words in refusal.message
    assert all(f"'{column}'" in refusal.message for column in columns)
    assert "datasets[].type" in refusal.remedy


@pytest.mark.parametrize("row_type", ["auto", "instruction"])
def test_columns_of_both_instruction_forms_are_named_and_no_type_asked_for(row_type: str) -> None:
    refusal = a_refusal(["instruction", "text", "target", "output"], row_type=row_type)
    assert (refusal.failure_class, refusal.reason) == ("InvalidData", "RowTypeUnknown")
    forms = "'instruction', 'text', 'target' and 'instruction', 'output'"
    assert f"columns of 2 forms of type instruction: {forms}" in refusal.message
    assert "set the type" not in refusal.message
    assert "datasets[].type" not in refusal.remedy


def test_a_named_type_settles_what_auto_cannot() -> None:
    columns = ["prompt", "completion", "instruction", "output"]
    assert a_maker(columns, "promptCompletion").columns() == {"prompt", "completion"}
    assert a_maker(columns, "instruction").columns() == {"instruction", "input", "output"}


def test_infix_is_never_found_and_must_be_named() -> None:
    row: dict[str, object] = {"instruction": "{text} x {target}", "text": "a", "target": "b"}
    assert pair(a_maker(list(row)), row) == ("{text} x {target}a", "b")
    assert pair(a_maker(list(row), "infix"), row) == ("a x ", "b")


@pytest.mark.parametrize(
    ("instruction", "text", "expected"),
    [
        ("{text} instruction: {target}.", "tx", ("tx instruction: ", "YZ.")),
        ("{text} instruction: {target}.", "{target}", ("{target} instruction: ", "YZ.")),
        ("Say {text}{target}", "{text}", ("Say {text}", "YZ")),
    ],
)
def test_infix_fills_the_text_in_and_learns_the_target_and_what_follows(
    instruction: str, text: str, expected: tuple[str, str]
) -> None:
    row: dict[str, object] = {"instruction": instruction, "text": text, "target": "YZ"}
    assert pair(a_maker(list(row), "infix"), row) == expected


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        ("{text} only", "{target} 0 times"),
        ("{text}{text}{target}", "{text} 2 times"),
        ("{target} {text}", "{target} before {text}"),
    ],
)
def test_infix_needs_each_mark_once_and_in_order(instruction: str, words: str) -> None:
    row = {"instruction": instruction, "text": "tx", "target": "YZ"}
    with pytest.raises(RowError, match=re.escape(words)) as caught:
        a_maker(list(row), "infix").read(row)
    assert caught.value.column == "instruction"


@pytest.mark.parametrize("row_type", ["chat", "infix"])
def test_a_type_that_says_itself_what_is_learned_excludes_a_template(row_type: str) -> None:
    refusal = a_refusal(["messages"], row_type=row_type, promptTemplate="<<messages>>")
    assert (refusal.failure_class, refusal.reason) == ("InvalidConfig", "TemplateInvalid")
    assert f"type {row_type} excludes 'promptTemplate'" in refusal.message


def test_a_target_that_comes_later_than_the_first_text_row_is_refused() -> None:
    maker = a_maker(["text"])
    with pytest.raises(RowError, match="'target' is there, but not in the first row"):
        maker.read({"text": "a", "target": "b"})


@pytest.mark.parametrize(
    ("row", "null"), [({"prompt": "p", "completion": None}, True), ({"prompt": "p", "completion": ""}, False)]
)
def test_a_null_completion_is_told_from_an_empty_one(row: dict[str, object], null: bool) -> None:
    said = a_maker(list(row)).read(row)
    assert (said.completion, said.null) == ("", null)


def test_a_row_that_lacks_a_column_of_its_type_names_it_and_those_there_are() -> None:
    maker = a_maker(["instruction", "text"], RowType.INSTRUCTION)
    with pytest.raises(RowError, match="column 'target' is missing; there are 'instruction', 'text'"):
        maker.read({"instruction": "a", "text": "b"})


def test_where_a_template_applies_no_type_is_looked_for() -> None:
    maker = a_maker(["question", "answer"], promptTemplate="Q: <<question>>", completionTemplate="<<answer>>")
    assert pair(maker, {"question": "q", "answer": "a"}) == ("Q: q", "a")


@pytest.mark.parametrize("column", ["target", "output", "completion"])
def test_a_prompt_template_alone_takes_the_one_completion_column(column: str) -> None:
    maker = a_maker(["question", column], promptTemplate="<<question>>")
    assert pair(maker, {"question": "q", column: "a"}) == ("q", "a")


@pytest.mark.parametrize("columns", [["question", "answer"], ["question", "target", "output"]])
def test_a_prompt_template_alone_needs_exactly_one_completion_column(columns: list[str]) -> None:
    refusal = a_refusal(columns, promptTemplate="<<question>>")
    assert (refusal.failure_class, refusal.reason) == ("InvalidConfig", "TemplateInvalid")
    assert "exactly 1 column named target, output or completion" in refusal.message


def test_a_completion_template_alone_means_an_empty_prompt() -> None:
    maker = a_maker(["text"], completionTemplate="<<text>>!")
    assert pair(maker, {"text": "all of it"}) == ("", "all of it!")


@pytest.mark.parametrize(("name", "hint"), [("wrong", ""), (" source ", "<<source>>"), ("Source", "<<source>>")])
def test_a_column_that_no_row_has_is_named_with_the_dataset_the_columns_and_the_nearest(name: str, hint: str) -> None:
    columns = ["source", "reference"]
    maker = a_maker(columns, promptTemplate=f"<<{name}>>", completionTemplate="<<reference>>")
    with pytest.raises(RunError) as caught:
        check_references(maker, {name}, columns, "dataset 'faq', s3://data/faq.jsonl, line 1")
    refusal = caught.value
    assert (refusal.failure_class, refusal.reason) == ("InvalidConfig", "TemplateInvalid")
    for words in (f"'{name}'", "'source', 'reference'", "dataset 'faq'", "line 1", "promptTemplate"):
        assert words in refusal.message
    assert hint in refusal.remedy
    assert ("Did you mean" in refusal.remedy) == bool(hint)


def test_a_datasets_own_template_wins() -> None:
    maker = a_maker(
        ["a", "target"],
        dataset={"promptTemplate": "own <<a>>"},
        promptTemplate="common",
        completionTemplate="<<target>>",
    )
    assert pair(maker, {"a": "x", "target": "t"}) == ("own x", "t")
    assert template_warnings(maker, "here") == []


def test_a_template_without_references_is_allowed_with_a_warning() -> None:
    maker = a_maker(["target"], promptTemplate="no refs")
    assert pair(maker, {"target": "t"}) == ("no refs", "t")
    assert template_warnings(maker, "here") == [
        "here: promptTemplate has no <<column>> reference: every row gets the same text"
    ]
