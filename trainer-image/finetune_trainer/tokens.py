"""From text to ids and labels, piece by piece.

A text is cut at every border of a part that is learned. Its first piece is tokenised as generation does it, each later
one as a continuation: behind a sentinel text whose ids are then taken away. Never all jointly, since tokens would then
lie over a border and generation could not make them; never a later piece alone, since SentencePiece would put a blank
before it. Labels come from positions alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np
from finetune_api.names import FailureClass
from tokenizers import Tokenizer

from finetune_trainer.errors import RunError
from finetune_trainer.texts import Piece, Text, TokenRow

PROBES = ("a", " a", "  a", "\n", "\na", "1", ".", "#", "é", "日", "A", "'s", "\t")
"""Pieces that a sentinel must leave alone."""

PLAIN_SENTINELS = ("\n", "\x01", "a", ".", "0", ":")
"""Tried after the special tokens, which some tokenizers follow with a blank of their own."""


@dataclass
class Oddities:
    """What is strange about tokenised rows and no error: rows by why."""

    unknown: int = 0
    """Rows with a character that the tokenizer does not know."""
    special: int = 0
    """Rows whose text holds a special token's text, which then is that token."""
    lossy: int = 0
    """Rows that the tokenizer does not give back as they were, whether in pieces or whole."""
    first: dict[str, int] = field(default_factory=dict)
    """The first row of each kind, counted over all rows seen."""
    seen: int = 0
    """Rows seen."""


class RowTokenizer:
    """A tokenizer that knows how to continue a text."""

    def __init__(self, tokenizer: Tokenizer, end_id: int) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self.end_id = end_id
        self.begin_ids = begin_ids(tokenizer)
        self.specials = {
            number: token.content for number, token in tokenizer.get_added_tokens_decoder().items() if token.special
        }
        self.unknown_id = _unknown_id(tokenizer)
        self.sentinels = find_sentinels(tokenizer, self._sentinel_texts())
        self.oddities = Oddities()

    def encode(self, texts: Sequence[Text]) -> list[TokenRow]:
        """Ids of many rows; each is checked to decode to its own text."""
        first = self._first_pieces([text.pieces[0].text for text in texts])
        later = iter(self._continuations([piece for text in texts for piece in text.pieces[1:]]))
        parts = [[ids, *islice(later, len(text.pieces) - 1)] for text, ids in zip(texts, first, strict=True)]
        rows = [self._row(text, pieces) for text, pieces in zip(texts, parts, strict=True)]
        self._check(texts, parts)
        return rows

    def prompt_ids(self, prompt: str) -> list[int]:
        """A whole prompt as generation sends it: behind the begin token where there is one, and never behind two."""
        [ids] = self._first_pieces([prompt])
        return ids if ids[: len(self.begin_ids)] == self.begin_ids else [*self.begin_ids, *ids]

    def _row(self, text: Text, parts: list[list[int]]) -> TokenRow:
        doubled = parts[0][: len(self.begin_ids)] == self.begin_ids
        begin = [] if doubled or text.is_chat else self.begin_ids
        end = [] if text.end or parts[-1][-1:] == [self.end_id] else [self.end_id]
        ids = np.array([*begin, *chain.from_iterable(parts), *end], np.int32)
        learned, position = np.full(len(ids), False), len(begin)
        for piece, part in zip(text.pieces, parts, strict=True):
            learned[position : position + len(part)] = piece.learned
            position += len(part)
        learned[position:] = True
        prompt = position - len(parts[-1])
        return TokenRow(ids, learned, len(self.begin_ids) if begin or doubled else 0, prompt)

    def _first_pieces(self, texts: list[str]) -> list[list[int]]:
        return [found.ids for found in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _continuations(self, pieces: list[Piece]) -> list[list[int]]:
        befores = [self._sentinel(piece) for piece in pieces]
        whole = [sentinel + piece.text for (sentinel, _), piece in zip(befores, pieces, strict=True)]
        encoded = self.tokenizer.encode_batch_fast(whole, add_special_tokens=False)
        return [
            found.ids[len(ids) :] if found.ids[: len(ids)] == ids else self._continuation(piece.text)
            for found, piece, (_, ids) in zip(encoded, pieces, befores, strict=True)
        ]

    def _sentinel(self, piece: Piece) -> tuple[str, list[int]]:
        number = self.tokenizer.token_to_id(piece.behind) if piece.behind else None
        return self.sentinels[0] if number is None else (piece.behind, [number])

    def _continuation(self, text: str) -> list[int]:
        """The slow way, for a text that runs into the first sentinel."""
        for sentinel, ids in self.sentinels[1:]:
            found: list[int] = self.tokenizer.encode(sentinel + text, add_special_tokens=False).ids
            if found[: len(ids)] == ids:
                return found[len(ids) :]
        raise no_sentinel(f"the tokenizer joins every sentinel with the text that begins {text[:20]!r}")

    def _check(self, texts: Sequence[Text], parts: list[list[list[int]]]) -> None:
        """decode(prompt + completion ids) must be decode(prompt ids) + completion; else it is explained or refused."""
        bodies = [list(chain.from_iterable(pieces)) for pieces in parts]
        decoded = self.tokenizer.decode_batch(bodies, skip_special_tokens=False)
        for text, pieces, body, found in zip(texts, parts, bodies, decoded, strict=True):
            self.oddities.seen += 1
            if self._notes(body, text.is_chat) or found == str(text) or self._same_border(text, pieces, found):
                continue
            self._note("lossy")
            if not text.is_chat:  # A template's own tokens may swallow the blanks around them.
                self._require_lossy(text, found)

    def _notes(self, ids: list[int], is_chat: bool) -> bool:
        """Count unknown and special tokens among the ids of the text; a chat has special ones of its own."""
        there = self.specials.keys() & set(ids)
        unknown = self.unknown_id in ids
        if unknown:
            self._note("unknown")
        if is_chat:
            return unknown
        if there - {self.unknown_id}:
            self._note("special")
        return unknown or bool(there)

    def _same_border(self, text: Text, parts: list[list[int]], found: str) -> bool:
        """Whether the last piece follows what is before it as it should, by the tokenizer's own normalizer."""
        prompt = self.tokenizer.decode(list(chain.from_iterable(parts[:-1])), skip_special_tokens=False)
        return found.startswith(prompt) and self._normal(found[len(prompt) :]) == self._normal(text.pieces[-1].text)

    def _require_lossy(self, text: Text, found: str) -> None:
        """Where the whole text tokenised at once comes back changed in the same way, it is not the border's fault."""
        whole = self.tokenizer.encode(str(text), add_special_tokens=False).ids
        if self.tokenizer.decode(whole, skip_special_tokens=False) != found:
            raise RunError(
                FailureClass.INVALID_CONFIG,
                "TokenizerUnsupported",
                f"the tokenizer does not give back a completion tokenised behind its prompt: "
                f"{text.pieces[-1].text[:40]!r}",
                "Choose a model with a tokenizer that keeps text unchanged.",
            )

    def _note(self, kind: str) -> None:
        setattr(self.oddities, kind, getattr(self.oddities, kind) + 1)
        self.oddities.first.setdefault(kind, self.oddities.seen)

    def _normal(self, text: str) -> str:
        normalizer = self.tokenizer.normalizer
        return str(normalizer.normalize_str(text)) if normalizer else text

    def _sentinel_texts(self) -> list[str]:
        special = [text for number, text in self.specials.items() if number != self.unknown_id]
        first = [self.specials[self.end_id]] if self.end_id in self.specials else []
        return [*first, *special, *PLAIN_SENTINELS]


def begin_ids(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before a text of its own accord; what it would put behind it is not our end token."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole: list[int] = tokenizer.encode("a", add_special_tokens=True).ids
    starts = (start for start in range(len(whole)) if whole[start : start + len(bare)] == bare)
    return whole[: next(starts, 0)] if bare else []


def find_sentinels(tokenizer: Tokenizer, candidates: list[str]) -> list[tuple[str, list[int]]]:
    """The candidates that leave each probe as a continuation, with their ids. Raises RunError where none does."""
    probes = [piece for piece in PROBES if _decoded(tokenizer, "a" + piece) == "a" + piece]
    found = [(text, tokenizer.encode(text, add_special_tokens=False).ids) for text in dict.fromkeys(candidates)]
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    good = [
        (text, ids) for text, ids in found if ids and _leaves_alone(tokenizer, text, ids, probes, text not in special)
    ]
    if not good:
        raise no_sentinel(f"none of {len(found)} sentinel texts leaves the text behind it alone")
    return good


def _leaves_alone(tokenizer: Tokenizer, sentinel: str, ids: list[int], probes: list[str], may_join: bool) -> bool:
    """Whether every probe behind the sentinel is itself; a plain sentinel may join with some, which rows then show."""
    first = tokenizer.encode("a", add_special_tokens=False).ids
    kept = 0
    for piece in probes:
        whole: list[int] = tokenizer.encode(sentinel + piece, add_special_tokens=False).ids
        if whole[: len(ids)] != ids:
            if not may_join:
                return False
        elif tokenizer.decode(first + whole[len(ids) :], skip_special_tokens=False) != "a" + piece:
            return False
        else:
            kept += 1
    return kept > 0


def _decoded(tokenizer: Tokenizer, text: str) -> str:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    name = getattr(tokenizer.model, "unk_token", None)
    return tokenizer.token_to_id(name) if name else None


def no_sentinel(why: str) -> RunError:
    """The tokenizer cannot continue a text."""
    return RunError(
        FailureClass.INVALID_CONFIG,
        "TokenizerUnsupported",
        f"the model's tokenizer cannot tokenise a completion behind its prompt: {why}",
        "Choose a model with another tokenizer.",
    )
