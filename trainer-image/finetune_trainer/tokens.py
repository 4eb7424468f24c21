"""From prompt and completion to ids and labels, piece by piece.

The prompt is tokenised as generation does it, the completion as a continuation of it: behind a sentinel text whose ids
are then taken away. Never both jointly, since tokens would then lie over the border and generation could not make
them; never the completion alone, since SentencePiece would put a blank before it. Labels come from positions alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from finetune_api.names import FailureClass
from finetune_api.resource import Overlong
from tokenizers import Tokenizer

from finetune_trainer.errors import RunError
from finetune_trainer.prepared import Flags, Ids

PROBES = ("a", " a", "  a", "\n", "\na", "1", ".", "#", "é", "日", "A", "'s", "\t")
"""Pieces that a sentinel must leave alone."""

PLAIN_SENTINELS = ("\n", "\x01", "a", ".", "0", ":")
"""Tried after the special tokens, which some tokenizers follow with a blank of their own."""

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One row of ids: begin token if any, prompt, completion, end token."""

    ids: Ids
    begin: int
    """Begin tokens at the start: 0 or 1, rarely more."""
    prompt: int
    """Ids before the completion, begin tokens included."""

    def supervised(self, train_on_prompt: bool) -> Flags:
        """Which ids are learned: completion and end, and the prompt if asked for; never the first id."""
        flags = np.full(len(self.ids), True)
        if not train_on_prompt:
            flags[: self.prompt] = False
        flags[: max(self.begin, 1)] = False
        return flags

    def truncated(self, limit: int) -> "TokenRow | None":
        """The row with its prompt shortened from its start to fit `limit` ids; None where no prompt id would stay.

        Begin tokens, completion and end token stay whole.
        """
        kept = limit - self.begin - (len(self.ids) - self.prompt)
        if kept < 1 or self.prompt == self.begin:
            return None
        ids = np.concatenate([self.ids[: self.begin], self.ids[self.prompt - kept :]])
        return TokenRow(ids, self.begin, self.begin + kept)


def fitted(row: TokenRow, limit: int, overlong: Overlong) -> TokenRow | None:
    """The row if it fits, the shortened row with `truncate`, else None."""
    if len(row.ids) <= limit:
        return row
    return row.truncated(limit) if overlong is Overlong.TRUNCATE else None


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
        self.begin_text = str(tokenizer.decode(self.begin_ids, skip_special_tokens=False))
        self.specials = {
            number: token.content for number, token in tokenizer.get_added_tokens_decoder().items() if token.special
        }
        self.unknown_id = _unknown_id(tokenizer)
        self.sentinels = find_sentinels(tokenizer, self._sentinel_texts())
        self.oddities = Oddities()

    def encode(self, pairs: Sequence[Pair]) -> list[TokenRow]:
        """Ids of many rows; each is checked to decode to its own text."""
        prompts = self._first_pieces([prompt or completion for prompt, completion in pairs])
        rest = iter(self._continuations([completion for prompt, completion in pairs if prompt]))
        rows = [
            self._row(first, next(rest)) if prompt else self._row([], first)
            for (prompt, _), first in zip(pairs, prompts, strict=True)
        ]
        self._check(pairs, rows)
        return rows

    def prompt_ids(self, prompt: str) -> list[int]:
        """A whole prompt as generation sends it: behind the begin token where there is one, and never behind two."""
        [ids] = self._first_pieces([prompt])
        return ids if ids[: len(self.begin_ids)] == self.begin_ids else [*self.begin_ids, *ids]

    def _row(self, prompt: list[int], completion: list[int]) -> TokenRow:
        end = [] if completion[-1:] == [self.end_id] else [self.end_id]
        doubled = (prompt or completion)[: len(self.begin_ids)] == self.begin_ids
        begin = [] if doubled else self.begin_ids
        ids = np.array([*begin, *prompt, *completion, *end], np.int32)
        return TokenRow(ids, len(self.begin_ids), len(begin) + len(prompt))

    def _first_pieces(self, texts: list[str]) -> list[list[int]]:
        return [found.ids for found in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _continuations(self, texts: list[str]) -> list[list[int]]:
        sentinel, ids = self.sentinels[0]
        encoded = self.tokenizer.encode_batch_fast([sentinel + text for text in texts], add_special_tokens=False)
        return [
            found.ids[len(ids) :] if found.ids[: len(ids)] == ids else self._continuation(text)
            for found, text in zip(encoded, texts, strict=True)
        ]

    def _continuation(self, text: str) -> list[int]:
        """The slow way, for a text that runs into the first sentinel."""
        for sentinel, ids in self.sentinels[1:]:
            found: list[int] = self.tokenizer.encode(sentinel + text, add_special_tokens=False).ids
            if found[: len(ids)] == ids:
                return found[len(ids) :]
        raise no_sentinel(f"the tokenizer joins every sentinel with the text that begins {text[:20]!r}")

    def _check(self, pairs: Sequence[Pair], rows: list[TokenRow]) -> None:
        """decode(prompt + completion ids) must be decode(prompt ids) + completion; else it is explained or refused."""
        bodies = [self._body(row, pair) for row, pair in zip(rows, pairs, strict=True)]
        texts = self.tokenizer.decode_batch(bodies, skip_special_tokens=False)
        for pair, row, body, text in zip(pairs, rows, bodies, texts, strict=True):
            self.oddities.seen += 1
            if self._notes(body) or text == pair[0] + pair[1]:
                continue
            if not self._same_border(pair, row, body, text):
                self._note("lossy")
                self._require_lossy(pair, text)

    def _body(self, row: TokenRow, pair: Pair) -> list[int]:
        """The ids without the begin token and the end token that we added."""
        written = bool(self.begin_text) and (pair[0] or pair[1]).startswith(self.begin_text)
        ids: list[int] = row.ids[0 if written else row.begin :].tolist()
        ended = pair[1].endswith(self.specials.get(self.end_id, "\0"))
        return ids if ended else ids[:-1]

    def _notes(self, ids: list[int]) -> bool:
        """Count unknown and special tokens among the ids of the text."""
        there = self.specials.keys() & set(ids)
        unknown = self.unknown_id in ids
        if unknown:
            self._note("unknown")
        if there - {self.unknown_id}:
            self._note("special")
        return unknown or bool(there)

    def _same_border(self, pair: Pair, row: TokenRow, body: list[int], text: str) -> bool:
        """Whether the completion follows the prompt as it should, by the tokenizer's own normalizer."""
        prompt = self.tokenizer.decode(body[: row.prompt - row.begin], skip_special_tokens=False)
        return text.startswith(prompt) and self._normal(text[len(prompt) :]) == self._normal(pair[1])

    def _require_lossy(self, pair: Pair, text: str) -> None:
        """Where the whole text tokenised at once comes back changed in the same way, it is not the border's fault."""
        whole = self.tokenizer.encode(pair[0] + pair[1], add_special_tokens=False).ids
        if self.tokenizer.decode(whole, skip_special_tokens=False) != text:
            raise RunError(
                FailureClass.INVALID_CONFIG,
                "TokenizerUnsupported",
                f"the tokenizer does not give back a completion tokenised behind its prompt: {pair[1][:40]!r}",
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
