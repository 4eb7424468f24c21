r"""Templates: text with `<<column>>` references, filled in one pass from left to right.

A name is one or more characters on one line without `<<` or `>>`; `\<<` writes a literal `<<`; everything else, `{}`
and other backslashes included, is literal. What is inserted is never looked at again.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite

from finetune_trainer.errors import RowError, quoted

_TOKEN = re.compile(r"\\<<|<<((?:(?!<<|>>)[^\r\n])+)>>")


@dataclass(frozen=True)
class Template:
    """A compiled template: `literals` has one more entry than `names`, and they alternate."""

    literals: tuple[str, ...]
    names: tuple[str, ...]

    def render(self, values: Mapping[str, object]) -> str:
        """The text with each reference replaced by its value. Raises RowError for a value that is no text."""
        if not self.names:
            return self.literals[0]
        parts = [self.literals[0]]
        for name, literal in zip(self.names, self.literals[1:], strict=True):
            parts.append(text_of(values, name))
            parts.append(literal)
        return "".join(parts)


def parse_template(source: str) -> Template:
    """Compile a template; every text is a valid one."""
    literals, names, position, pending = [], [], 0, ""
    for match in _TOKEN.finditer(source):
        pending += source[position : match.start()]
        position = match.end()
        if match[1] is None:
            pending += "<<"
            continue
        literals.append(pending)
        names.append(match[1])
        pending = ""
    return Template((*literals, pending + source[position:]), tuple(names))


def text_of(values: Mapping[str, object], name: str) -> str:
    """The value of a column as text: strings unchanged, numbers and booleans in JSON form, null as empty text.

    Raises RowError where the row lacks the column or holds anything else there: a list, an object, a date, NaN.
    """
    if name not in values:
        raise RowError(f"column '{name}' is missing; there are {quoted(tuple(values))}", column=name)
    value = values[name]
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool | int) or (isinstance(value, float) and isfinite(value)):
        return json.dumps(value)
    raise RowError(f"column '{name}' holds {_kind(value)}, not a text, number or boolean", column=name)


def _kind(value: object) -> str:
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return "NaN or infinity" if isinstance(value, float) else f"a value of type {type(value).__name__}"


def nearest(name: str, columns: list[str]) -> str | None:
    """The column most like `name`, whatever its case and the blanks around it; None where none is like it."""
    folded = {column.strip().casefold(): column for column in reversed(columns)}
    found = get_close_matches(name.strip().casefold(), folded, n=1)
    return folded[found[0]] if found else None
