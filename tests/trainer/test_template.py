"""Rule T of templates."""

import string

import pytest
from finetune_trainer.errors import RowError
from finetune_trainer.template import nearest, parse_template
from hypothesis import assume, given
from hypothesis import strategies as st

ROW = {"source": "hello", "reference": "hallo"}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Source: <<source>>\nReference: <<reference>>", "Source: hello\nReference: hallo"),
        ("<<source>> {x} {source} {}", "hello {x} {source} {}"),
        ("no refs", "no refs"),
        (r"a << b <<source>> \<<source>> <<", "a << b hello <<source>> <<"),
        (r"\n \\ <<source>>", r"\n \\ hello"),
        (r"\\<<source>>", r"\<<source>>"),
        ("<<>> <<source>>>", "<<>> hello>"),
        ("<<sou\nrce>>", "<<sou\nrce>>"),
        ("<<source>><<reference>>", "hellohallo"),
        (">> <<source>>", ">> hello"),
    ],
)
def test_references_are_filled_and_everything_else_is_literal(template: str, text: str) -> None:
    assert parse_template(template).render(ROW) == text


@pytest.mark.parametrize("value", ["<<reference>> {reference}", r"\<<", ">>", " blanks \n"])
def test_what_is_inserted_is_never_scanned_or_trimmed(value: str) -> None:
    assert parse_template("<<source>>").render({"source": value, "reference": "no"}) == value


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (0.5, "0.5"), (True, "true"), (False, "false"), (None, ""), ("", "")]
)
def test_scalars_stand_in_json_form_and_null_is_empty(value: object, text: str) -> None:
    assert parse_template("[<<x>>]").render({"x": value}) == f"[{text}]"


@pytest.mark.parametrize("value", [[1], {"a": 1}])
def test_a_list_or_an_object_is_refused_with_its_column(value: object) -> None:
    with pytest.raises(RowError, match="column 'x' holds a") as caught:
        parse_template("<<x>>").render({"x": value})
    assert caught.value.column == "x"


def test_names_match_exactly_and_the_nearest_is_suggested() -> None:
    assert parse_template("<< source >> <<Source>>").names == (" source ", "Source")
    columns = ["source", "reference"]
    assert nearest(" source ", columns) == nearest("Source", columns) == nearest("sorce", columns) == "source"
    assert nearest("wrong", columns) is None


@given(st.text())
def test_every_text_is_a_template_and_without_references_it_renders_itself_but_for_escapes(source: str) -> None:
    template = parse_template(source)
    if not template.names:
        assert template.render({}) == source.replace(r"\<<", "<<")


@given(st.text(st.sampled_from("<>ab {}\n\\")))
def test_an_escaped_text_is_literal(text: str) -> None:
    assume("\\<" not in text)  # Its backslash would then belong to the text, and escape what it should not.
    assert parse_template(text.replace("<<", r"\<<")).render({}) == text


@given(
    names=st.lists(st.text(string.ascii_letters + " _-.{}", min_size=1), min_size=1, max_size=5),
    glue=st.text(string.ascii_letters + " \n{}", max_size=5),
    data=st.data(),
)
def test_each_value_appears_once_for_each_reference_and_in_order(
    names: list[str], glue: str, data: st.DataObject
) -> None:
    values = {name: data.draw(st.text()) for name in names}
    source = glue.join(f"<<{name}>>" for name in names)
    assert parse_template(source).render(values) == glue.join(values[name] for name in names)
