"""Rule D of row types, and where templates apply."""

from typing import Any

import pytest
from finetune_api.resource import Dataset, RowType, TrainingSpec
from finetune_trainer.errors import RowError, RunError
from finetune_trainer.pairs import PairMaker, check_references, pair_maker, template_warnings


def a_maker(
    columns: list[str], row_type: str = "auto", dataset: dict[str, Any] | None = None, **spec: Any
) -> PairMaker:
    given = {"name": "faq", "uri": "s3://data/faq.jsonl", "type": row_type, **(dataset or {})}
    training = TrainingSpec.model_validate(
        {"model": {"uri": "s3://models/m"}, "datasets": [given], "output": {"uri": "s3://out/x"}, **spec}
    )
    return pair_maker(Dataset.model_validate(given), training, columns, "dataset 'faq', s3://data/faq.jsonl")


def a_refusal(columns: list[str], **given: Any) -> RunError:
    with pytest.raises(RunError) as caught:
        a_maker(columns, **given)
    return caught.value


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"instruction": "I:", "text": "tx", "target": "YZ"}, ("I:tx", "YZ")),
        ({"instruction": "I:", "text": "", "target": "YZ"}, ("I:", "YZ")),
        ({"instruction": "I:", "input": "tx", "output": "YZ"}, ("I:tx", "YZ")),
        ({"instruction": "I:", "output": "YZ"}, ("I:", "YZ")),
        ({"instruction": "I:", "input": None, "output": 7}, ("I:", "7")),
        ({"prompt": "p ", "completion": " c"}, ("p ", " c")),
        ({"id": 3, "prompt": "p", "completion": "c"}, ("p", "c")),
    ],
)
def test_the_type_is_found_from_the_columns_and_nothing_is_put_between(
    row: dict[str, object], pair: tuple[str, str]
) -> None:
    assert a_maker(list(row)).pair(row) == pair


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["question", "answer"], "make no row type"),
        (["prompt"], "make no row type; promptCompletion lacks column 'completion'"),
        (["instruction", "text"], "instruction lacks column 'target'; instruction lacks column 'output'"),
        (["prompt", "completion", "messages"], "promptCompletion and chat"),
        (["prompt", "completion", "instruction", "output"], "instruction and promptCompletion"),
        (["messages"], "look like type chat, which is not supported"),
        (["text", "target"], "look like type text, which is not supported"),
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


def test_a_row_that_lacks_a_column_of_its_type_names_it_and_those_there_are() -> None:
    maker = a_maker(["instruction", "text"], RowType.INSTRUCTION)
    with pytest.raises(RowError, match="column 'target' is missing; there are 'instruction', 'text'"):
        maker.pair({"instruction": "a", "text": "b"})


def test_where_a_template_applies_no_type_is_looked_for() -> None:
    maker = a_maker(["question", "answer"], promptTemplate="Q: <<question>>", completionTemplate="<<answer>>")
    assert maker.pair({"question": "q", "answer": "a"}) == ("Q: q", "a")


@pytest.mark.parametrize("column", ["target", "output", "completion"])
def test_a_prompt_template_alone_takes_the_one_completion_column(column: str) -> None:
    maker = a_maker(["question", column], promptTemplate="<<question>>")
    assert maker.pair({"question": "q", column: "a"}) == ("q", "a")


@pytest.mark.parametrize("columns", [["question", "answer"], ["question", "target", "output"]])
def test_a_prompt_template_alone_needs_exactly_one_completion_column(columns: list[str]) -> None:
    refusal = a_refusal(columns, promptTemplate="<<question>>")
    assert (refusal.failure_class, refusal.reason) == ("InvalidConfig", "TemplateInvalid")
    assert "exactly 1 column named target, output or completion" in refusal.message


def test_a_completion_template_alone_means_an_empty_prompt() -> None:
    maker = a_maker(["text"], completionTemplate="<<text>>!")
    assert maker.pair({"text": "all of it"}) == ("", "all of it!")


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
    assert maker.pair({"a": "x", "target": "t"}) == ("own x", "t")
    assert template_warnings(maker, "here") == []


def test_a_template_without_references_is_allowed_with_a_warning() -> None:
    maker = a_maker(["target"], promptTemplate="no refs")
    assert maker.pair({"target": "t"}) == ("no refs", "t")
    assert template_warnings(maker, "here") == [
        "here: promptTemplate has no <<column>> reference: every row gets the same text"
    ]
