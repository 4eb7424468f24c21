"""One row of text in pieces that are learned or not, and the same row as ids; how a row is brought to a length."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from finetune_api.training import Overlong

from finetune_trainer.prepared import Flags, Ids


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text that is learned as a whole or not at all."""

    text: str
    learned: bool
    behind: str = ""
    """The text of one token that the piece follows in any reading: the best sentinel there is."""


@dataclass(frozen=True, slots=True)
class Text:
    """One row as pieces; the last one is learned."""

    pieces: tuple[Piece, ...]
    is_chat: bool = False
    """Written by a chat template, begin token included: the tokenizer adds none, and special tokens are as they
    should be."""
    end: str = ""
    """The token's text that the last piece ends with, where it has an end of turn of its own: no end token follows."""

    def __str__(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def pair_text(prompt: str, completion: str) -> Text:
    """Prompt and completion; without a prompt the whole text is learned."""
    learned = Piece(completion, learned=True)
    return Text((Piece(prompt, learned=False), learned) if prompt else (learned,))


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One row of ids: begin token if any, the pieces, end token."""

    ids: Ids
    learned: Flags
    """(tokens,) which ids belong to a learned piece, end token included."""
    begin: int
    """Begin tokens at the start: 0 or 1, rarely more."""
    prompt: int
    """Ids before the last learned piece, begin tokens included."""

    def supervised(self, train_on_prompt: bool) -> Flags:
        """Which ids are learned: those of learned pieces, or all if asked for; never the first id."""
        flags = np.full(len(self.ids), True) if train_on_prompt else self.learned.copy()
        flags[: max(self.begin, 1)] = False
        return flags

    def truncated(self, limit: int) -> "TokenRow | None":
        """The row with its prompt shortened from its start to fit `limit` ids; None where no prompt id would stay.

        Begin tokens, the last learned piece and the end token stay whole.
        """
        kept = limit - self.begin - (len(self.ids) - self.prompt)
        if kept < 1 or self.prompt == self.begin:
            return None
        where = np.r_[: self.begin, self.prompt - kept : len(self.ids)]
        return TokenRow(self.ids[where], self.learned[where], self.begin, self.begin + kept)

    def windows(self, limit: int) -> "list[TokenRow]":
        """The row cut into rows of at most `limit` ids, each id in exactly one; one that teaches nothing is left out.

        A last window of one id takes one from the window before it: alone it would teach nothing.
        """
        bounds = [*range(0, len(self.ids), limit), len(self.ids)]
        if bounds[-1] - bounds[-2] == 1 and len(bounds) > 2:
            bounds[-2] -= 1
        found = [self._window(start, end) for start, end in pairwise(bounds)]
        return [window for window in found if window.supervised(train_on_prompt=False).any()]

    def _window(self, start: int, end: int) -> "TokenRow":
        begin = 0 if start else self.begin
        return TokenRow(self.ids[start:end], self.learned[start:end], begin, begin)


def fitted(row: TokenRow, limit: int, overlong: Overlong, text: Text) -> list[TokenRow]:
    """What of a row is kept: itself if it fits; else with `truncate` the shortened row, with `split` its windows.

    Chats are neither shortened nor cut, and only a text without a prompt is cut.
    """
    if len(row.ids) <= limit:
        return [row]
    if overlong is Overlong.TRUNCATE and not text.is_chat:
        shortened = row.truncated(limit)
        return [shortened] if shortened else []
    if overlong is Overlong.SPLIT and can_be_cut(text):
        return row.windows(limit)
    return []


def can_be_cut(text: Text) -> bool:
    """Whether it is learned from its start to its end, so that no window lacks its prompt."""
    return len(text.pieces) == 1 and not text.is_chat
