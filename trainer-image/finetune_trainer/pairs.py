"""What a row says: its prompt and its completion, by templates or by the row's type; a chat says its messages.

A row type is a pair of templates that we chose, so that both ways render alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from finetune_trainer.chat import Chat, read_chat
from finetune_trainer.errors import RowError
from finetune_trainer.template import Template, text_of

NO_TEXT = Template(("",), ())


@dataclass(frozen=True, slots=True)
class Said:
    """What one row says."""

    prompt: str
    completion: str
    """What is learned; of a chat the last answer, which may be empty only where it calls a tool."""
    null: bool = False
    """Whether the completion is empty because its column is null."""
    chat: Chat | None = None


class RowMaker(Protocol):
    """Turns the rows of one dataset into what they say."""

    @property
    def templates(self) -> Mapping[str, Template]:
        """The user's templates, by the field that gives them."""

    def columns(self) -> set[str]:
        """The columns that act."""

    def read(self, values: Mapping[str, object]) -> Said:
        """What one row says. Raises RowError for a missing column or a value that cannot be used."""


@dataclass(frozen=True)
class PairMaker:
    """Two templates."""

    prompt: Template
    completion: Template
    optional: Mapping[str, str] = field(default_factory=dict)
    """Columns that a row may lack, with what stands for them."""
    absent: frozenset[str] = frozenset()
    """Columns that no row may have, since they would change what the rows are, and the first row lacks them."""
    templates: Mapping[str, Template] = field(default_factory=dict)

    def columns(self) -> set[str]:
        return {*self.prompt.names, *self.completion.names}

    def read(self, values: Mapping[str, object]) -> Said:
        for name in self.absent:
            if name in values:
                raise RowError(f"column '{name}' is there, but not in the first row: rows are of one kind", column=name)
        if self.optional:
            values = {**self.optional, **values}
        prompt, completion = self.prompt.render(values), self.completion.render(values)
        null = not completion and any(values[name] is None for name in self.completion.names)
        return Said(prompt, completion, null)


@dataclass(frozen=True)
class InfixMaker:
    """The row's own instruction says where `{text}` and then `{target}` stand."""

    templates: Mapping[str, Template] = field(default_factory=dict)

    def columns(self) -> set[str]:
        return {"instruction", "text", "target"}

    def read(self, values: Mapping[str, object]) -> Said:
        instruction, text, target = (text_of(values, name) for name in ("instruction", "text", "target"))
        before, between, after = _infix_parts(instruction)
        completion = f"{target}{after}" if target else ""
        return Said(f"{before}{text}{between}", completion, null=values["target"] is None)


def _infix_parts(instruction: str) -> tuple[str, str, str]:
    """What stands before, between and behind the two marks."""
    counts = {mark: instruction.count(mark) for mark in ("{text}", "{target}")}
    for mark, count in counts.items():
        if count != 1:
            raise RowError(
                f"column 'instruction' holds {mark} {count} times: exactly 1 is needed", column="instruction"
            )
    before, _, rest = instruction.partition("{text}")
    between, found, after = rest.partition("{target}")
    if not found:
        raise RowError("column 'instruction' holds {target} before {text}", column="instruction")
    return before, between, after


@dataclass(frozen=True)
class ChatMaker:
    """A list of messages; the model's chat template renders it later."""

    templates: Mapping[str, Template] = field(default_factory=dict)

    def columns(self) -> set[str]:
        return {"messages", "tools"}

    def read(self, values: Mapping[str, object]) -> Said:
        chat = read_chat(values)
        return Said("", chat.last_answer, chat=chat)
