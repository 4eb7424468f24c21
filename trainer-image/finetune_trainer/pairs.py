"""What a row says: its prompt and its completion, by templates or by the row's type.

A row type is a pair of templates that we chose, so that both ways render alike. Where a template applies, no type is
looked for.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from finetune_api.names import FailureClass
from finetune_api.resource import Dataset, RowType, TrainingSpec

from finetune_trainer.errors import RunError, quoted
from finetune_trainer.template import Template, nearest, parse_template

COMPLETION_COLUMNS = ("target", "output", "completion")
"""With a prompt template alone, the one of these that is there is the completion."""

NO_TEXT = Template(("",), ())


@dataclass(frozen=True)
class PairMaker:
    """Turns the rows of one dataset into prompt and completion."""

    prompt: Template
    completion: Template
    optional: Mapping[str, str]
    """Columns that a row may lack, with what stands for them."""
    templates: Mapping[str, Template] = field(default_factory=dict)
    """The user's templates, by the field that gives them."""

    def pair(self, values: Mapping[str, object]) -> tuple[str, str]:
        """Prompt and completion of one row. Raises RowError for a missing column or a value that is no text."""
        if self.optional:
            values = {**self.optional, **values}
        return self.prompt.render(values), self.completion.render(values)

    def columns(self) -> set[str]:
        """The columns that act."""
        return {*self.prompt.names, *self.completion.names}


@dataclass(frozen=True)
class _Shape:
    """One set of columns that makes a row type."""

    type_name: str
    required: tuple[str, ...]
    prompt: tuple[str, ...]
    completion: str
    optional: tuple[str, ...] = ()

    def maker(self) -> PairMaker:
        prompt = Template(("",) * (len(self.prompt) + 1), self.prompt)
        return PairMaker(prompt, Template(("", ""), (self.completion,)), dict.fromkeys(self.optional, ""))


SHAPES = (
    _Shape("instruction", ("instruction", "text", "target"), ("instruction", "text"), "target"),
    _Shape("instruction", ("instruction", "output"), ("instruction", "input"), "output", optional=("input",)),
    _Shape("promptCompletion", ("prompt", "completion"), ("prompt",), "completion"),
)

UNSUPPORTED_SHAPES = {"chat": ("messages",), "text": ("text",)}
"""Rows that are recognised, so that nothing else is taken for them, but not trained without a template."""


def pair_maker(dataset: Dataset, training: TrainingSpec, columns: list[str], where: str) -> PairMaker:
    """How to read the rows of `dataset`, whose first row has `columns` after mapping; `where` names dataset, file and
    line.

    Raises RunError: InvalidConfig (TemplateInvalid) where no column is the completion, InvalidData (RowTypeUnknown) for
    columns that make no row type, or more than one.
    """
    sources = {
        "promptTemplate": dataset.prompt_template or training.prompt_template,
        "completionTemplate": dataset.completion_template or training.completion_template,
    }
    templates = {name: parse_template(source) for name, source in sources.items() if source is not None}
    if not templates:
        return _shape(dataset.type, columns, where).maker()
    completion = templates.get("completionTemplate")
    if completion is None:
        completion = Template(("", ""), (_completion_column(columns, where),))
    return PairMaker(templates.get("promptTemplate", NO_TEXT), completion, optional={}, templates=templates)


def template_warnings(maker: PairMaker, where: str) -> list[str]:
    """What a user should know about the templates."""
    return [
        f"{where}: {name} has no <<column>> reference: every row gets the same text"
        for name, template in maker.templates.items()
        if not template.names
    ]


def check_references(maker: PairMaker, missing: Set[str], columns: list[str], where: str) -> None:
    """Raises RunError (InvalidConfig, TemplateInvalid) for a template that names a column no row has.

    `missing` columns are in no row, `columns` are those there are; `where` names dataset, file and first line. A column
    that only some rows lack is those rows' mistake.
    """
    for template_name, template in maker.templates.items():
        for name in template.names:
            if name not in missing:
                continue
            like = nearest(name, columns)
            suggestion = f"Did you mean <<{like}>>? " if like else ""
            raise _template_invalid(
                f"{where}: {template_name} names column '{name}', which is not there; there are {quoted(columns)}",
                f"{suggestion}Correct {template_name}, or map the column with datasets[].columns.",
            )


def _completion_column(columns: list[str], where: str) -> str:
    found = [name for name in COMPLETION_COLUMNS if name in columns]
    if len(found) == 1:
        return found[0]
    what = f"there are {len(found)} of them" if found else f"there are only {quoted(columns)}"
    raise _template_invalid(
        f"{where}: promptTemplate without completionTemplate needs exactly 1 column named target, output or "
        f"completion; {what}",
        "Set completionTemplate.",
    )


def _template_invalid(message: str, remedy: str) -> RunError:
    return RunError(FailureClass.INVALID_CONFIG, "TemplateInvalid", message, remedy)


def _shape(row_type: RowType, columns: list[str], where: str) -> _Shape:
    wanted = [shape for shape in SHAPES if row_type in (RowType.AUTO, shape.type_name)]
    found = [shape for shape in wanted if set(shape.required) <= set(columns)]
    others = _unsupported(columns) if row_type is RowType.AUTO else []
    if len(found) == 1 and not others:
        return found[0]
    if row_type is not RowType.AUTO and not found:
        # The one whose columns are nearly there: each row then names what it lacks, with its line.
        return max(wanted, key=lambda shape: len(set(shape.required) & set(columns)))
    names = list(dict.fromkeys([shape.type_name for shape in found] + others))
    if len(found) > 1 and len(names) == 1:
        forms = " and ".join(quoted(shape.required) for shape in found)
        remedy = "Leave the columns of one form out of the file, or set promptTemplate and completionTemplate."
        raise _type_unknown(f"{where}: there are columns of {len(found)} forms of type {names[0]}: {forms}", remedy)
    raise _type_unknown(
        f"{where}: columns {quoted(columns)} {_reading(names, columns)}",
        "Set promptTemplate and completionTemplate, or datasets[].type (promptCompletion or instruction) and columns.",
    )


def _type_unknown(message: str, remedy: str) -> RunError:
    return RunError(FailureClass.INVALID_DATA, "RowTypeUnknown", message, remedy)


def _unsupported(columns: list[str]) -> list[str]:
    """Row types that the columns make and that are not supported; a text row has no instruction."""
    return [
        name
        for name, required in UNSUPPORTED_SHAPES.items()
        if set(required) <= set(columns) and not (name == "text" and "instruction" in columns)
    ]


def _reading(names: list[str], columns: list[str]) -> str:
    if not names:
        return f"make no row type{_nearly(columns)}"
    if len(names) == 1:
        return f"look like type {names[0]}, which is not supported without a template"
    return f"make more than 1 row type ({' and '.join(names)}): set the type"


def _nearly(columns: list[str]) -> str:
    """The types that lack one column only, with that column."""
    lacking = [(shape.type_name, set(shape.required) - set(columns)) for shape in SHAPES]
    found = [f"; {name} lacks column {quoted(missing)}" for name, missing in lacking if len(missing) == 1]
    return "".join(found)
