"""Rule L: ids and labels by pieces, whatever the tokenizer."""

import pytest
from finetune_api.training import Overlong
from finetune_trainer.errors import RunError
from finetune_trainer.texts import TokenRow, fitted, pair_text
from finetune_trainer.tokens import RowTokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.trainer.runs import SHARED
from tests.trainer.tiny import BOS, EOS, a_tokenizer

CORPUS = ["the answer is the answer", "Answer: the theory", "ein Wort, noch ein Wort\n\n", "é ü 日本 #### 42"] * 20


def end_id(tokenizer: Tokenizer) -> int:
    found = tokenizer.token_to_id(EOS)
    assert found is not None
    return found


def a_row_tokenizer(begin_token: bool = False, pad_is_end: bool = False) -> RowTokenizer:
    tokenizer = a_tokenizer(begin_token, pad_is_end)
    return RowTokenizer(tokenizer, end_id(tokenizer))


def a_byte_level_tokenizer() -> RowTokenizer:
    """As GPT-2's and its heirs'."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[EOS, BOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        f"{BOS} $A {EOS}",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS)), (EOS, tokenizer.token_to_id(EOS))],
    )
    return RowTokenizer(tokenizer, end_id(tokenizer))


def a_sentencepiece_tokenizer(legacy: bool) -> RowTokenizer:
    """As Llama 2's, with a blank before the first word; the legacy form puts one behind each special token too."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", BOS, EOS, *byte_tokens], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer = Tokenizer.from_str(_without_special_bytes(tokenizer, byte_tokens))
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, bos)])
    return RowTokenizer(tokenizer, end_id(tokenizer))


def _without_special_bytes(tokenizer: Tokenizer, byte_tokens: list[str]) -> str:
    import json

    whole = json.loads(tokenizer.to_str())
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["content"] not in byte_tokens]
    return json.dumps(whole)


ALL_KINDS = {
    "characters": a_row_tokenizer(),
    "characters with begin token": a_row_tokenizer(begin_token=True),
    "byte level": a_byte_level_tokenizer(),
    "sentencepiece": a_sentencepiece_tokenizer(legacy=False),
    "sentencepiece, legacy": a_sentencepiece_tokenizer(legacy=True),
}

every_kind = pytest.mark.parametrize("kind", ALL_KINDS)


def tokens_of(of: RowTokenizer, row: TokenRow) -> list[str]:
    return [str(of.tokenizer.id_to_token(int(number))) for number in row.ids]


@pytest.mark.parametrize("pad_is_end", [False, True])
def test_completion_and_end_token_are_learned_and_the_prompt_is_not(pad_is_end: bool) -> None:
    tokenizer = a_row_tokenizer(pad_is_end=pad_is_end)
    [row] = tokenizer.encode([pair_text("I:tx", "YZ")])
    assert tokens_of(tokenizer, row) == ["I", ":", "t", "x", "Y", "Z", EOS]
    assert row.supervised(train_on_prompt=False).tolist() == [False] * 4 + [True] * 3
    assert row.supervised(train_on_prompt=True).tolist() == [False] + [True] * 6


def test_a_begin_token_stands_once_at_the_start_and_is_never_learned() -> None:
    tokenizer = a_row_tokenizer(begin_token=True)
    rows = tokenizer.encode([pair_text("ab", "c"), pair_text(f"{BOS}ab", "c"), pair_text("", "c")])
    assert tokens_of(tokenizer, rows[0]) == tokens_of(tokenizer, rows[1]) == [BOS, "a", "b", "c", EOS]
    assert rows[1].supervised(train_on_prompt=True).tolist() == [False, True, True, True, True]
    assert tokens_of(tokenizer, rows[2]) == [BOS, "c", EOS]
    assert rows[2].supervised(train_on_prompt=False).tolist() == [False, True, True]


def test_an_end_token_is_never_doubled() -> None:
    tokenizer = a_row_tokenizer()
    [row] = tokenizer.encode([pair_text("a", f"b{EOS}")])
    assert tokens_of(tokenizer, row) == ["a", "b", EOS]


def test_without_a_prompt_the_whole_text_is_learned_but_for_its_first_id() -> None:
    tokenizer = a_row_tokenizer()
    [row] = tokenizer.encode([pair_text("", "abc")])
    assert row.supervised(train_on_prompt=False).tolist() == [False, True, True, True]


@every_kind
def test_the_prompts_ids_are_those_that_generation_sends(kind: str) -> None:
    tokenizer = ALL_KINDS[kind]
    prompts = ["Answer: ", "the", "Answer:", " a\n"]
    for prompt, row in zip(
        prompts, tokenizer.encode([pair_text(prompt, "the answer") for prompt in prompts]), strict=True
    ):
        alone = tokenizer.tokenizer.encode(prompt).ids
        sent = alone[:-1] if alone[-1] == tokenizer.end_id else alone
        assert row.ids[: row.prompt].tolist() == sent


@every_kind
def test_no_token_lies_over_the_border_and_no_blank_is_added(kind: str) -> None:
    tokenizer = ALL_KINDS[kind]
    decode = tokenizer.tokenizer.decode
    pairs = [("Answer: ", "the answer"), ("Answer:", " the"), ("the", "ory"), ("x\n", "\ny"), ("a ", " b")]
    for (prompt, completion), row in zip(pairs, tokenizer.encode([pair_text(*pair) for pair in pairs]), strict=True):
        body = row.ids[row.begin : -1].tolist()
        assert decode(body[: row.prompt - row.begin], skip_special_tokens=False) == prompt
        assert decode(body, skip_special_tokens=False) == prompt + completion


@every_kind
@given(prompt=st.text(max_size=12), completion=st.text(min_size=1, max_size=12))
def test_any_text_is_given_back_or_counted_as_odd(kind: str, prompt: str, completion: str) -> None:
    tokenizer = ALL_KINDS[kind]
    before = _oddities(tokenizer)
    [row] = tokenizer.encode([pair_text(prompt, completion)])
    odd = _oddities(tokenizer) > before
    text = tokenizer.tokenizer.decode(row.ids[row.begin : -1].tolist(), skip_special_tokens=False)
    assert odd or text.endswith(completion) or text + EOS == prompt + completion
    assert row.ids[-1] == tokenizer.end_id
    assert np_all_false(row, tokenizer)


def np_all_false(row: TokenRow, tokenizer: RowTokenizer) -> bool:
    """No prompt id is learned, and neither is the first."""
    flags = row.supervised(train_on_prompt=False)
    return not flags[: max(row.prompt, 1)].any() and bool(flags[max(row.prompt, 1) :].all())


def _oddities(tokenizer: RowTokenizer) -> int:
    found = tokenizer.oddities
    return found.unknown + found.special + found.lossy


def test_a_subword_tokenizer_would_merge_over_the_border_and_ours_does_not() -> None:
    tokenizer = ALL_KINDS["byte level"]
    joint = tokenizer.tokenizer.encode("Answer: the", add_special_tokens=False).ids
    [row] = tokenizer.encode([pair_text("Answer: ", "the")])
    assert "Ġthe" in [tokenizer.tokenizer.id_to_token(number) for number in joint]
    assert "Ġthe" not in tokens_of(tokenizer, row)


def test_unknown_characters_and_special_texts_are_counted_and_no_error() -> None:
    tokenizer = a_row_tokenizer()
    tokenizer.encode([pair_text("plain", "text"), pair_text("é", "x"), pair_text("a", f"{EOS} b")])
    assert (tokenizer.oddities.unknown, tokenizer.oddities.special, tokenizer.oddities.lossy) == (1, 1, 0)


def test_a_tokenizer_that_changes_text_is_counted_as_lossy() -> None:
    tokenizer = a_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), tokenizer.pre_tokenizer])
    found = RowTokenizer(tokenizer, end_id(tokenizer))
    found.encode([pair_text("a b", "c d"), pair_text("ab", "cd")])
    assert found.oddities.lossy == 1


def test_a_normalizer_changes_text_without_being_odd() -> None:
    tokenizer = a_tokenizer()
    tokenizer.normalizer = normalizers.Lowercase()
    found = RowTokenizer(tokenizer, end_id(tokenizer))
    [row] = found.encode([pair_text("AB ", "Cd")])
    assert tokens_of(found, row) == ["a", "b", " ", "c", "d", EOS]
    assert _oddities(found) == 0


def test_a_tokenizer_that_joins_everything_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, EOS: 1, "a": 2}, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(EOS, special=True, rstrip=True, lstrip=True)])
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(RunError, match="sentinel") as caught:
        RowTokenizer(tokenizer, 1)
    assert (caught.value.failure_class, caught.value.reason) == ("InvalidConfig", "TokenizerUnsupported")


@pytest.mark.parametrize(
    ("limit", "overlong", "expected"),
    [
        (7, Overlong.ERROR, "I:txYZ"),
        (5, Overlong.ERROR, None),
        (5, Overlong.DROP, None),
        (5, Overlong.SPLIT, None),
        (5, Overlong.TRUNCATE, "txYZ"),
        (4, Overlong.TRUNCATE, "xYZ"),
        (3, Overlong.TRUNCATE, None),
    ],
)
def test_a_row_above_the_limit_is_refused_or_loses_the_start_of_its_prompt(
    limit: int, overlong: Overlong, expected: str | None
) -> None:
    tokenizer = a_row_tokenizer()
    [row] = tokenizer.encode([pair_text("I:tx", "YZ")])
    found = fitted(row, limit, overlong, pair_text("I:tx", "YZ"))
    if expected is None:
        assert found == []
    else:
        [kept] = found
        assert tokens_of(tokenizer, kept) == [*expected, EOS]
        assert kept.supervised(train_on_prompt=False).sum() == 3


def test_truncation_keeps_the_begin_token() -> None:
    tokenizer = a_row_tokenizer(begin_token=True)
    [row] = tokenizer.encode([pair_text("I:tx", "YZ")])
    text = pair_text("I:tx", "YZ")
    [kept] = fitted(row, 5, Overlong.TRUNCATE, text)
    assert tokens_of(tokenizer, kept) == [BOS, "x", "Y", "Z", EOS]
    assert kept.supervised(train_on_prompt=True).tolist() == [False, True, True, True, True]
    assert fitted(row, 4, Overlong.TRUNCATE, text) == []


@pytest.mark.parametrize(
    ("ids", "limit", "lengths"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 3, 2]), (8, 4, [4, 4]), (4, 4, [4]), (4, 3, [2, 2]), (5, 2, [2, 2]), (3, 2, [2])],
)
def test_a_text_is_cut_into_windows_of_which_each_teaches_something(ids: int, limit: int, lengths: list[int]) -> None:
    tokenizer = a_row_tokenizer()
    text = pair_text("", "abcdefghi"[: ids - 1])
    [row] = tokenizer.encode([text])
    windows = fitted(row, limit, Overlong.SPLIT, text)
    assert [len(window.ids) for window in windows] == lengths
    assert all(window.supervised(train_on_prompt=False).tolist()[0] is False for window in windows)
    if sum(lengths) == ids:  # Else a window of one id was left out: it would teach nothing.
        assert [token for window in windows for token in window.ids] == row.ids.tolist()


def test_a_row_without_prompt_cannot_be_truncated() -> None:
    [row] = a_row_tokenizer().encode([pair_text("", "abcdef")])
    assert fitted(row, 5, Overlong.TRUNCATE, pair_text("", "abcdef")) == []


def test_a_real_sentencepiece_tokenizer_needs_a_plain_sentinel() -> None:
    path = SHARED / "models" / "stories260k" / "tokenizer.json"
    if not path.is_file():
        pytest.skip("shared/models/stories260k is not there")
    tokenizer = RowTokenizer(Tokenizer.from_file(str(path)), 2)
    assert tokenizer.sentinels[0][0] == "\n"
    [row] = tokenizer.encode([pair_text("Once upon a", " time")])
    assert tokenizer.tokenizer.decode(row.ids.tolist(), skip_special_tokens=False) == "<s> Once upon a time</s>"
