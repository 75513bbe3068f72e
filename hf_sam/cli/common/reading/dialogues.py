# SPDX-License-Identifier: Apache-2.0
"""Read rows for a language model: chats, prompts with their completions, or texts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hf_sam.cli.common.data import check_values
from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.reading.tables import Table

Kind = Literal["chat", "pair", "text"]
CHATS = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns")
PAIRS = (
    ("prompt", "completion"), ("instruction", "output"), ("instruction", "response"), ("prompt", "response"),
    ("prompt", "output"), ("question", "answer"), ("question", "response"), ("query", "response"), ("query", "answer"),
    ("input", "output"), ("problem", "solution"), ("source", "target"),
)  # fmt: skip
CONTEXTS = ("input", "context")  # what an instruction is about, in a column of its own
TEXTS = ("text", "content", "document", "body")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant"}
Message = dict[str, Any]


@dataclass
class Columns:
    """The columns that matter, and what they are together."""

    kind: Kind
    names: list[str]  # of a pair: prompt and completion, and what the prompt is about if that is apart
    as_written: bool = False  # whether a completion simply goes on where its prompt ends
    notes: list[str] = field(default_factory=list)


@dataclass
class Chat:
    """Messages, of which the assistant's are to be learnt from this one on."""

    messages: list[Message]
    start: int = 0


def find_columns(
    table: Table, *, chat: str | None = None, prompt: str | None = None, completion: str | None = None,
    text: str | None = None,
) -> Columns:  # fmt: skip
    """Return the columns that were named or found: of chats, else of prompts and completions, else of texts.

    Raises:
        UserError: if a column is missing, or it is open which one is meant.
    """
    named = {"messages_column": chat, "prompt_column": prompt, "completion_column": completion, "text_column": text}
    for argument, name in named.items():
        if name is not None and name not in table.names:
            raise UserError(f"--{argument} {name}: {table.where} has the columns {_listed(table)}.")
    if (prompt is None) != (completion is None):
        raise UserError("--prompt_column and --completion_column go together: give both.")
    by_key = {_key(name): name for name in table.names}
    if chat is not None or (prompt is None and text is None):
        chat = chat or next((by_key[key] for key in CHATS if key in by_key), None)
        if chat is not None:
            return Columns("chat", [chat])
    if text is None:
        pair = (prompt, completion) if prompt and completion else _pair(by_key)
        if pair is not None:
            return _of_pair(table, pair, by_key)
    text = text or next((by_key[key] for key in TEXTS if key in by_key), None)
    if text is None and len(table.names) == 1:
        text = table.names[0]
    if text is None:
        raise UserError(
            f"{table.where}: which columns are to be learnt? It has {_listed(table)}: messages, prompt and completion, "
            "or text are needed: name them with --messages_column, --prompt_column and --completion_column, or "
            "--text_column."
        )
    return Columns("text", [text])


def rows_of(table: Table, columns: Columns) -> list[Any]:
    """Return a Chat, a pair of texts or a text for each row.

    Raises:
        UserError: if a column is missing, or a row is none of these.
    """
    for name in columns.names:
        if name not in table.names:
            raise UserError(f"{table.where} has no column {name!r}; it has {_listed(table)}.")
    if columns.kind == "text":
        check_values(table.values(columns.names[0]), table.where, columns.names[0])
        return table.values(columns.names[0])
    if columns.kind == "chat":
        name = columns.names[0]
        return [
            Chat(_messages(value, f"{table.where}, row {row}: {name!r}"))
            for row, value in enumerate(table.values(name))
        ]
    return _pairs(table, columns.names)


def _pair(by_key: dict[str, str]) -> tuple[str, str] | None:
    return next(((by_key[one], by_key[two]) for one, two in PAIRS if one in by_key and two in by_key), None)


def _of_pair(table: Table, pair: tuple[str, str], by_key: dict[str, str]) -> Columns:
    found = Columns("pair", list(pair), as_written=(_key(pair[0]), _key(pair[1])) == ("prompt", "completion"))
    if _key(pair[0]) == "instruction":
        found.names += [by_key[key] for key in CONTEXTS if key in by_key and by_key[key] not in pair][:1]
    return found


def _pairs(table: Table, names: Sequence[str]) -> list[Any]:
    found: list[Any] = []
    columns = [table.values(name) for name in names]
    for row, (prompt, completion, *context) in enumerate(zip(*columns, strict=True)):
        where = f"{table.where}, row {row}"
        if isinstance(prompt, list) or isinstance(completion, list):
            before = _messages(prompt, f"{where}: {names[0]!r}")
            found.append(Chat([*before, *_messages(completion, f"{where}: {names[1]!r}")], start=len(before)))
            continue
        for name, value in zip(names, (prompt, completion), strict=False):
            if not isinstance(value, str) or not value.strip():
                what = "no text" if value is None or value == "" or isinstance(value, str) else f"{value!r:.60}"
                raise UserError(f"{where}: {name!r} must be text, got {what}: fill it in or remove the row.")
        about = str(context[0]).strip() if context and context[0] is not None else ""
        found.append((f"{prompt}\n\n{about}" if about else prompt, completion))
    return found


def _messages(value: Any, where: str) -> list[Message]:
    """Return messages with role and content, also from those with "from" and "value", or from a list in a text."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UserError(
                f"{where} must be a list of messages, and cannot be read: {one_line(error, 80)}."
            ) from error
    if not isinstance(value, list) or not value:
        raise UserError(f"{where} must be a list of messages, got {value!r:.60}.")
    return [_message(message, f"{where}, message {number}") for number, message in enumerate(value)]


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise UserError(f"{where}: an object with role and content is needed, got {message!r:.60}.")
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        what = "role" if not isinstance(role, str) else "content"
        shown = role if what == "role" else content
        raise UserError(f"{where}: {what} must be text, got {shown!r:.60}: tool calls and images are not read.")
    return {"role": ROLES.get(role.lower(), role.lower()), "content": content}


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def _listed(table: Table) -> str:
    return one_line(", ".join(table.names), 200)
