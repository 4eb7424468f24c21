"""Chats: what of them is learned, whatever the model's template does with them."""

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.chat import Chat, Message, read_chat
from finetune_trainer.chat_template import ChatWriter, Render
from finetune_trainer.errors import RowError, RunError
from finetune_trainer.texts import Text
from finetune_trainer.tokens import RowTokenizer
from finetune_trainer.vocabulary import load_chat_template, load_chat_writer, load_tokenizer

from tests.trainer.tiny import EOS, PAD, a_tokenizer_folder

SPECIALS = ["<|im_start|>", "<|im_end|>"]

TALK = [("system", "Be brief."), ("user", "1+1?"), ("assistant", "2"), ("user", "2+2?"), ("assistant", "4")]


def a_chat(*turns: tuple[str, str]) -> Chat:
    return read_chat({"messages": [{"role": role, "content": content} for role, content in turns or TALK]})


def chatml(messages: list[Message], tools: list[dict[str, Any]] | None, asks: bool) -> str:
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return text + ("<|im_start|>assistant\n" if asks else "")


def thinking(messages: list[Message], tools: list[dict[str, Any]] | None, asks: bool) -> str:
    """As Qwen3's: only the last answer shows that it thinks."""
    blocks = ["<think>\n\n</think>\n\n" if m is messages[-1] and m["role"] == "assistant" else "" for m in messages]
    told = [{**m, "content": block + m["content"]} for m, block in zip(messages, blocks, strict=True)]
    return chatml(told, tools, asks)


def plain(messages: list[Message], tools: list[dict[str, Any]] | None, asks: bool) -> str:
    """Without a token that ends a turn."""
    return "".join(f"{m['role']}: {m['content']}\n" for m in messages) + ("assistant: " if asks else "")


def misleading(messages: list[Message], tools: list[dict[str, Any]] | None, asks: bool) -> str:
    """Its generation prompt is not how an answer begins."""
    return chatml(messages, tools, False) + ("<|im_start|>assistant<think>\n" if asks else "")


def a_writer(render: Render = chatml) -> ChatWriter:
    return ChatWriter(render, SPECIALS)


def learned(text: Text) -> list[str]:
    return [piece.text for piece in text.pieces if piece.learned]


def test_every_answer_and_its_end_of_turn_is_learned_and_nothing_else() -> None:
    [text] = a_writer().texts(a_chat())
    assert learned(text) == ["2<|im_end|>", "4<|im_end|>"]
    assert str(text) == chatml(a_chat().messages, None, False).removesuffix("\n")
    assert text.end == "<|im_end|>"


def test_what_a_tool_says_is_not_learned_and_what_calls_it_is() -> None:
    [text] = a_writer().texts(a_chat(("user", "t?"), ("assistant", "call"), ("tool", "7"), ("assistant", "It is 7.")))
    assert learned(text) == ["call<|im_end|>", "It is 7.<|im_end|>"]


def test_where_history_is_written_in_another_way_each_answer_is_a_row_with_its_own_history() -> None:
    writer, chat = a_writer(thinking), a_chat()
    texts = writer.texts(chat)
    assert [learned(text) for text in texts] == [
        ["<think>\n\n</think>\n\n2<|im_end|>"],
        ["<think>\n\n</think>\n\n4<|im_end|>"],
    ]
    for text, number in zip(texts, chat.answers, strict=True):
        assert text.pieces[0].text == thinking(chat.messages[:number], None, True)
    assert (writer.by_turn, writer.unclear) == (1, 0)


def test_one_answer_needs_no_row_for_each() -> None:
    writer = a_writer(thinking)
    [text] = writer.texts(a_chat(("user", "1+1?"), ("assistant", "2")))
    assert learned(text) == ["<think>\n\n</think>\n\n2<|im_end|>"]
    assert writer.by_turn == 0


def test_without_an_end_of_turn_each_answer_gets_the_end_token_in_a_row_of_its_own() -> None:
    texts = a_writer(plain).texts(a_chat())
    assert [(learned(text), text.end) for text in texts] == [(["2\n"], ""), (["4\n"], "")]


def test_an_answer_that_does_not_begin_where_generation_does_is_learned_from_where_they_part() -> None:
    writer = a_writer(misleading)
    [text] = writer.texts(a_chat(("user", "1+1?"), ("assistant", "2")))
    assert learned(text) == ["\n2<|im_end|>"]
    assert writer.unclear == 1


def test_a_chat_that_the_assistant_begins_learns_that_turn_too() -> None:
    [text] = a_writer().texts(a_chat(("assistant", "Hello."), ("user", "Hi."), ("assistant", "Bye.")))
    assert learned(text) == ["Hello.<|im_end|>", "Bye.<|im_end|>"]
    assert text.pieces[0].text == "<|im_start|>assistant\n"


def test_somebody_who_says_a_special_token_is_counted() -> None:
    writer = a_writer()
    writer.texts(a_chat(("user", "say <|im_end|>"), ("assistant", "no")))
    writer.texts(a_chat())
    assert writer.special == 1


@pytest.mark.parametrize("written", ["", "{user}", "{user}<|im_end|>"])
def test_a_template_that_leaves_an_answer_out_is_told(written: str) -> None:
    """Else an end token, or nothing, would be all that is learned."""
    writer = a_writer(lambda messages, tools, asks: written.format(user=messages[0]["content"]))
    with pytest.raises(RowError, match="leaves out what there is to learn of message 2, an answer"):
        writer.texts(a_chat(("user", "1+1?"), ("assistant", "2")))


def test_a_template_that_refuses_is_told_with_its_reason() -> None:
    def refusing(messages: list[Message], tools: list[dict[str, Any]] | None, asks: bool) -> str:
        raise ValueError("roles must alternate")

    with pytest.raises(RowError, match="chat template refuses the messages: roles must alternate") as caught:
        a_writer(refusing).texts(a_chat())
    assert caught.value.column == "messages"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hello", "holds no list"),
        ([], "holds no message"),
        ([{"role": "user", "content": "x"}], "ends with a turn of role 'user', not assistant"),
        ([{"content": "x"}], "number 1, without role"),
        ([{"role": "user"}, {"role": "assistant", "content": "x"}], "number 1, without content"),
        ([{"role": "user", "content": 7}], "number 1, whose content is no text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "number 1, whose content is no text"),
        (["x"], "number 1, that is no object"),
    ],
)
def test_what_is_no_chat_is_refused(messages: object, words: str) -> None:
    with pytest.raises(RowError, match=re.escape(words)) as caught:
        read_chat({"messages": messages})
    assert caught.value.column == "messages"


def test_content_in_parts_and_calls_without_content_are_fine_and_nulls_are_left_out() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = [{"function": {"name": "f"}}]
    chat = read_chat(
        {
            "messages": [
                {"role": "user", "content": parts, "name": None},
                {"role": "assistant", "content": None, "tool_calls": call},
            ],
            "tools": None,
        }
    )
    assert chat.messages == [{"role": "user", "content": parts}, {"role": "assistant", "tool_calls": call}]
    assert chat.texts() == ["ab", ""]
    assert json.loads(chat.last_answer) == call


def a_talking_folder(folder: Path, template: str) -> Path:
    a_tokenizer_folder(folder, begin_token=True)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return folder


TURNS = "{{% for m in messages %}}{{{{ m.role }}}}:{{{{ m.content }}}}{end}\n{{% endfor %}}"
ASKS = "{% if add_generation_prompt %}assistant:{% endif %}"


@pytest.mark.parametrize("end", [EOS, PAD])
def test_the_ids_are_those_of_the_tokenizers_own_chat_template(tmp_path: Path, end: str) -> None:
    from transformers import AutoTokenizer

    folder = a_talking_folder(tmp_path, TURNS.format(end=end) + ASKS)
    tokenizer = RowTokenizer(*load_tokenizer(folder))
    writer = load_chat_writer(folder, list(tokenizer.specials.values()), date(2026, 1, 2))
    texts = writer.texts(a_chat())
    [row] = tokenizer.encode(texts)
    oracle = AutoTokenizer.from_pretrained(folder)
    whole = oracle.apply_chat_template(a_chat().messages, return_dict=False)
    assert row.ids.tolist() == whole[: len(row.ids)]
    assert oracle.decode(whole[len(row.ids) :]).strip() == ""
    asked = oracle.apply_chat_template(a_chat().messages[:-1], add_generation_prompt=True, return_dict=False)
    assert row.ids[: row.prompt].tolist() == asked
    assert oracle.decode(row.ids[row.supervised(train_on_prompt=False)]) == f"2{end}4{end}"
    assert tokenizer.oddities.seen == 1
    assert (tokenizer.oddities.special, tokenizer.oddities.lossy) == (0, 0)
    assert writer.ends == {end}


def test_a_template_is_told_the_date_of_the_run(tmp_path: Path) -> None:
    folder = a_talking_folder(tmp_path, "Today: {{ strftime_now('%d %b %Y') }}. {{ messages[0].content }}")
    render = load_chat_template(folder, date(2024, 7, 26))
    assert render([{"role": "user", "content": "x"}], None, False) == "Today: 26 Jul 2024. x"


def test_tools_reach_the_template(tmp_path: Path) -> None:
    folder = a_talking_folder(tmp_path, "{{ tools[0].function.name }}")
    render = load_chat_template(folder, date(2024, 7, 26))
    assert render([{"role": "user", "content": "x"}], [{"function": {"name": "look_up"}}], False) == "look_up"


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path: Path) -> None:
    folder = a_talking_folder(tmp_path, "{{ messages.__class__.__mro__ }}")
    writer = load_chat_writer(folder, [], date(2024, 7, 26))
    with pytest.raises(RowError, match="unsafe"):
        writer.texts(a_chat())


def test_a_tokenizer_without_a_chat_template_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no chat template") as caught:
        load_chat_template(a_tokenizer_folder(tmp_path), date(2024, 7, 26))
    assert (caught.value.failure_class, caught.value.reason) == ("InvalidConfig", "NoChatTemplate")
