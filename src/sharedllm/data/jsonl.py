"""A user's .jsonl files: a row is an object with `text`, or a chat as `messages` of `role` and `content`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from jinja2 import TemplateError

from sharedllm.errors import UsageError

HALF = re.compile("[\ud800-\udfff]")  # of a character that JSON escapes as two, cut apart; it cannot be encoded


def jsonl_rows(path: str, text: str, chat: Callable[[list[dict[str, str]]], str]) -> Iterator[tuple[str, str, bool]]:
    """Yields (name, text, whether it is a chat) for every row; `chat` renders messages.

    Raises UsageError, naming file and line, for a row of another form.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"Line {number} of {path}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{where} is not valid JSON ({error.msg} at column {error.colno}).") from error
        name = f"{path}:{number}"
        if isinstance(row, dict) and isinstance(row.get("text"), str):
            yield name, HALF.sub("\ufffd", row["text"]), False
        elif isinstance(row, dict) and _is_chat(row.get("messages")):
            yield name, HALF.sub("\ufffd", _rendered(row["messages"], chat, where)), True
        else:
            raise UsageError(f"{where} has neither a 'text' nor 'messages', a list of 'role' and 'content' texts.")


def _rendered(messages: list[dict[str, str]], chat: Callable[[list[dict[str, str]]], str], where: str) -> str:
    try:
        return chat(messages)
    except (TemplateError, TypeError, ValueError) as error:
        raise UsageError(f"{where} is a chat that the model's chat template refuses ({error}).") from error


def _is_chat(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages)
        and all(isinstance(m.get("content"), str) for m in messages)
    )
