"""Which reading a dataset's rows get: by templates where there are some, else by the type, named or found.

Where a template applies, no type is looked for.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass

from finetune_api.names import FailureClass
from finetune_api.resource import TrainingSpec
from finetune_api.sources import Dataset, RowType

from finetune_trainer.errors import RunError, quoted
from finetune_trainer.pairs import NO_TEXT, ChatMaker, InfixMaker, PairMaker, RowMaker
from finetune_trainer.template import Template, nearest, parse_template

COMPLETION_COLUMNS = ("target", "output", "completion")
"""With a prompt template alone, the one of these that is there is the completion."""

WITHOUT_TEMPLATE = frozenset({RowType.CHAT, RowType.INFIX})
"""Types that say themselves what is prompt and what is learned."""


@dataclass(frozen=True)
class _Shape:
    """One set of columns that makes a row type."""

    type: RowType
    required: tuple[str, ...]
    maker: Callable[[Set[str]], RowMaker]
    """From the columns of the first row."""
    excluded: frozenset[str] = frozenset()
    """Columns with which it is not taken for this type unless the type is named."""
    detected: bool = True
    """Whether `auto` finds it."""


def _joined(prompt: tuple[str, ...], completion: str, **optional: str) -> PairMaker:
    """Columns joined with nothing in between, then the completion."""
    return PairMaker(Template(("",) * (len(prompt) + 1), prompt), Template(("", ""), (completion,)), optional)


def _text(columns: Set[str]) -> PairMaker:
    """With a target: text, then target; without: the whole text is learned."""
    if "target" in columns:
        return _joined(("text",), "target")
    return PairMaker(NO_TEXT, Template(("", ""), ("text",)), absent=frozenset({"target"}))


SHAPES = (
    _Shape(
        RowType.INSTRUCTION,
        ("instruction", "text", "target"),
        lambda _: _joined(("instruction", "text"), "target"),
    ),
    _Shape(
        RowType.INSTRUCTION,
        ("instruction", "output"),
        lambda _: _joined(("instruction", "input"), "output", input=""),
    ),
    _Shape(RowType.PROMPT_COMPLETION, ("prompt", "completion"), lambda _: _joined(("prompt",), "completion")),
    _Shape(RowType.CHAT, ("messages",), lambda _: ChatMaker()),
    _Shape(RowType.TEXT, ("text",), _text, excluded=frozenset({"instruction"})),
    _Shape(RowType.INFIX, ("instruction", "text", "target"), lambda _: InfixMaker(), detected=False),
)


def row_maker(dataset: Dataset, training: TrainingSpec, columns: list[str], where: str) -> RowMaker:
    """How to read the rows of `dataset`, whose first row has `columns` after mapping; `where` names dataset, file and
    line.

    Raises RunError: InvalidConfig (TemplateInvalid) where no column is the completion or the type forbids a template,
    InvalidData (RowTypeUnknown) for columns that make no row type, or more than one.
    """
    sources = {
        "promptTemplate": dataset.prompt_template or training.prompt_template,
        "completionTemplate": dataset.completion_template or training.completion_template,
    }
    templates = {name: parse_template(source) for name, source in sources.items() if source is not None}
    if not templates:
        return _shape(dataset.type, columns, where).maker(set(columns))
    if dataset.type in WITHOUT_TEMPLATE:
        raise _template_invalid(
            f"{where}: datasets[].type {dataset.type} excludes {quoted(tuple(templates))}",
            "Leave the template out, or set it per dataset.",
        )
    completion = templates.get("completionTemplate")
    if completion is None:
        completion = Template(("", ""), (_completion_column(columns, where),))
    return PairMaker(templates.get("promptTemplate", NO_TEXT), completion, templates=templates)


def template_warnings(maker: RowMaker, where: str) -> list[str]:
    """What a user should know about the templates."""
    return [
        f"{where}: {name} has no <<column>> reference: every row gets the same text"
        for name, template in maker.templates.items()
        if not template.names
    ]


def check_references(maker: RowMaker, missing: Set[str], columns: list[str], where: str) -> None:
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
    if row_type is not RowType.AUTO:
        return _shape_of_type(row_type, columns, where)
    found = [shape for shape in SHAPES if shape.detected and _fits(shape, columns)]
    if len(found) == 1:
        return found[0]
    types = list(dict.fromkeys(shape.type.value for shape in found))
    if len(found) > 1 and len(types) == 1:
        raise _two_forms(found, where)
    raise _type_unknown(
        f"{where}: columns {quoted(columns)} {_reading(types, columns)}",
        f"Set promptTemplate and completionTemplate, or datasets[].type ({', '.join(_NAMES)}) and columns.",
    )


_NAMES = tuple(kind.value for kind in RowType if kind is not RowType.AUTO)


def _shape_of_type(row_type: RowType, columns: list[str], where: str) -> _Shape:
    wanted = [shape for shape in SHAPES if shape.type is row_type]
    found = [shape for shape in wanted if set(shape.required) <= set(columns)]
    if len(found) > 1:
        raise _two_forms(found, where)
    # The one whose columns are nearly there: each row then names what it lacks, with its line.
    return found[0] if found else max(wanted, key=lambda shape: len(set(shape.required) & set(columns)))


def _fits(shape: _Shape, columns: list[str]) -> bool:
    return set(shape.required) <= set(columns) and shape.excluded.isdisjoint(columns)


def _two_forms(found: list[_Shape], where: str) -> RunError:
    forms = " and ".join(quoted(shape.required) for shape in found)
    return _type_unknown(
        f"{where}: there are columns of {len(found)} forms of type {found[0].type}: {forms}",
        "Leave the columns of one form out of the file, or set promptTemplate and completionTemplate.",
    )


def _type_unknown(message: str, remedy: str) -> RunError:
    return RunError(FailureClass.INVALID_DATA, "RowTypeUnknown", message, remedy)


def _reading(types: list[str], columns: list[str]) -> str:
    if types:
        return f"make more than 1 row type ({' and '.join(types)}): set the type"
    return f"make no row type{_nearly(columns)}"


def _nearly(columns: list[str]) -> str:
    """The types that lack one of several columns, with that column."""
    shapes = [shape for shape in SHAPES if shape.detected and len(shape.required) > 1]
    lacking = [(shape.type, set(shape.required) - set(columns)) for shape in shapes]
    return "".join(f"; {kind} lacks column {quoted(missing)}" for kind, missing in lacking if len(missing) == 1)
