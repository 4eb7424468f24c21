"""Chats as the model's own template writes them, cut at the borders of the assistant's turns.

What is learned of a chat: each turn of the assistant, with its end-of-turn token, and nothing else. Where a turn lies
is found by rendering the messages before it, as generation sends them, and up to it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from finetune_trainer.chat import Chat, Message
from finetune_trainer.errors import RowError
from finetune_trainer.texts import Piece, Text

Render = Callable[[list[Message], list[dict[str, Any]] | None, bool], str]
"""Messages and tools as text; with True it ends where the assistant's answer begins."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """One answer: what is before it, itself, and the text of the token that ends it, if one does."""

    before: str
    answer: str
    end: str


@dataclass
class ChatWriter:
    """Turns chats into texts with pieces, and counts what a user should know."""

    render: Render
    special_texts: list[str]
    """Of the tokenizer's special tokens."""
    by_turn: int = 0
    """Chats of which each answer is a row of its own, since the template writes history in another way."""
    unclear: int = 0
    """Chats with an answer that does not begin where generation would begin it."""
    special: int = 0
    """Chats in which somebody says the text of a special token."""
    ends: set[str] = field(default_factory=set)
    """Texts of the tokens that ended turns."""

    def __post_init__(self) -> None:
        longest_first = sorted(filter(None, self.special_texts), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._end = re.compile(rf"({self._special.pattern})\s*\Z")

    def texts(self, chat: Chat) -> list[Text]:
        """One text with all answers learned, or one for each answer. Raises RowError where the template refuses."""
        turns = [self._turn(chat, number) for number in chat.answers]
        self.special += any(self._special.search(text) for text in chat.texts())
        self.ends.update(turn.end for turn in turns if turn.end)
        whole = self._rendered(chat, len(chat.messages), False)
        if all(whole.startswith(turn.before + turn.answer) for turn in turns) and all(turn.end for turn in turns[:-1]):
            return [_joined(whole, turns)]
        self.by_turn += 1
        return [_joined(turn.before + turn.answer, [turn]) for turn in turns]

    def _turn(self, chat: Chat, number: int) -> _Turn:
        """The answer that is message `number`. Raises RowError where the template writes nothing of it."""
        upto = self._rendered(chat, number + 1, False)
        before = self._rendered(chat, number, True) if number else self._opening(chat, upto)
        if not upto.startswith(before):
            self.unclear += 1
            before = _common_start(before, upto)
        answer = upto[len(before) :]
        found = self._end.search(answer)
        if chat.said(number).strip() and not answer[: found.start() if found else None].strip():
            what = f"message {number + 1}, an answer"
            raise RowError(f"the model's chat template leaves out what there is to learn of {what}", column="messages")
        return _Turn(before, answer[: found.end(1)], found[1]) if found else _Turn(before, answer, "")

    def _opening(self, chat: Chat, first: str) -> str:
        """What is before the answer of a chat that the assistant begins: templates render no empty chat."""
        asked, told = self._rendered(chat, 1, True), self._rendered(chat, 1, False)
        header = asked.removeprefix(told)
        start = first.find(header)
        return first[: start + len(header)] if start >= 0 else asked

    def _rendered(self, chat: Chat, count: int, asks: bool) -> str:
        try:
            return self.render(chat.messages[:count], chat.tools, asks)
        except Exception as error:
            raise RowError(f"the model's chat template refuses the messages: {error}", column="messages") from error


def _joined(whole: str, turns: list[_Turn]) -> Text:
    """A text up to its last answer; what a template writes behind that teaches nothing."""
    pieces, position, behind = [], 0, ""
    for turn in turns:
        start = len(turn.before)
        if start > position:
            pieces.append(Piece(whole[position:start], False, behind))
        pieces.append(Piece(turn.answer, True))
        position, behind = start + len(turn.answer), turn.end
    return Text(tuple(pieces), is_chat=True, end=turns[-1].end)


def _common_start(first: str, second: str) -> str:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return first[: sum(1 for _ in same)]
