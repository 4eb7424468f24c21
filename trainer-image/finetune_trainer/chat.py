"""Chats: rows with a list of messages. What can be said of them without the model is checked here.

The model's own template renders them later, since it belongs to the model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_trainer.errors import RowError

Message = dict[str, Any]

ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Chat:
    """The messages of one row; the last is the assistant's."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    """Descriptions of tools for the template."""

    @property
    def answers(self) -> list[int]:
        """Where the assistant's turns stand."""
        return [number for number, message in enumerate(self.messages) if message["role"] == ASSISTANT]

    @property
    def last_answer(self) -> str:
        """What the last turn says, or the tools it calls."""
        return self.said(-1)

    def said(self, number: int) -> str:
        """What one of the messages says, or the tools it calls."""
        return _said(self.messages[number])

    def canonical(self) -> str:
        """The same text for the same chat."""
        return json.dumps([self.messages, self.tools], sort_keys=True, ensure_ascii=False, default=str)

    def texts(self) -> list[str]:
        """What people and models say in it."""
        return [_content(message.get("content")) for message in self.messages]


def read_chat(values: Mapping[str, object]) -> Chat:
    """The chat of one row. Raises RowError for what is no chat, or has no last turn of the assistant."""
    if "messages" not in values:
        raise _wrong("is missing")
    found = values["messages"]
    if not isinstance(found, list):
        raise _wrong("holds no list of messages")
    if not found:
        raise _wrong("holds no message")
    messages = [_message(number, entry) for number, entry in enumerate(found, start=1)]
    last = messages[-1]["role"]
    if last != ASSISTANT:
        raise _wrong(f"ends with a turn of role '{last}', not assistant: there is nothing to learn")
    return Chat(messages, _tools(values.get("tools")))


def _message(number: int, entry: object) -> Message:
    """One message without keys that are null: columnar files have them all, and templates take them for values."""
    if not isinstance(entry, dict):
        raise _wrong(f"holds a message, number {number}, that is no object with role and content")
    message = {str(key): value for key, value in entry.items() if value is not None}
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise _wrong(f"holds a message, number {number}, without role")
    if "content" not in message and not (role == ASSISTANT and message.get("tool_calls")):
        raise _wrong(f"holds a message, number {number}, without content")
    if not _is_content(message.get("content", "")):
        raise _wrong(f"holds a message, number {number}, whose content is no text")
    return message


def _is_content(content: object) -> bool:
    """A text, or parts that are all text."""
    if isinstance(content, list):
        return all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content)
    return isinstance(content, str)


def _content(content: object) -> str:
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return str(content or "")


def _said(message: Message) -> str:
    text = _content(message.get("content"))
    calls = message.get("tool_calls")
    return text or (json.dumps(calls, ensure_ascii=False, default=str) if calls else "")


def _tools(found: object) -> list[dict[str, Any]] | None:
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise RowError("column 'tools' holds no list of tool descriptions", column="tools")
    return found or None


def _wrong(what: str) -> RowError:
    return RowError(f"column 'messages' {what}", column="messages")
