# SPDX-License-Identifier: Apache-2.0
"""Turn chats, prompts with completions and texts into tokens, with labels for those that the loss counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from jinja2.exceptions import TemplateError

from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.facts import Lengths
from hf_sam.cli.common.reading.dialogues import Chat

NOT_COUNTED = -100
PLAIN = (
    "{% for message in messages %}{{ message['role'] }}:{{ ' ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""A chat template for any tokenizer: "user: ...", a line a message; the assistant ends with the end-of-text token."""
INSTRUCTION = "### Instruction:\n{prompt}\n\n### Response:\n"
_SLACK = 2  # tokens at the end of a message that may merge with what follows it


@dataclass
class Counted:
    """One set as tokens."""

    data: Dataset
    lengths: Lengths
    counted: int  # tokens of the loss
    total: int
    dropped: int  # rows of which nothing is counted once they are cut
    merged: int  # rows whose prompt ends in the middle of a token


def set_template(tokenizer: Any, given: str | None) -> None:
    """Give the tokenizer the chat template of `--chat_template`: "plain", or a file.

    Raises:
        UserError: if the file cannot be read.
    """
    if given is None:
        return
    try:
        tokenizer.chat_template = PLAIN if given == "plain" else Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--chat_template {given} must be plain, or a file with a template: {one_line(error)}"
        ) from error


def as_chats(rows: Sequence[Any], tokenizer: Any) -> list[Any]:
    """Return questions and answers as the tokenizer's chats, or between headings if it has no template for chats."""
    if tokenizer.chat_template is None:
        return [row if isinstance(row, Chat) else (INSTRUCTION.format(prompt=row[0]), row[1]) for row in rows]
    roles = ("user", "assistant")
    return [
        row
        if isinstance(row, Chat)
        else Chat([{"role": role, "content": text} for role, text in zip(roles, row, strict=True)])
        for row in rows
    ]


def count_tokens(
    rows: Sequence[Any], places: Sequence[str], tokenizer: Any, limit: int, *, completions_only: bool
) -> Counted:
    """Return one set as tokens, with labels for those that the loss counts.

    Args:
        rows: A Chat, a pair of prompt and completion, or a text each.
        places: Where each row stands, for messages.
        tokenizer: The model's.
        limit: Tokens that are kept of a row.
        completions_only: Whether the loss leaves out prompts, and all messages but the assistant's.

    Raises:
        UserError: if the chat template does not take a row, or nothing is left to be counted.
    """
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    lengths: list[int] = []
    merged = 0
    for row, place in zip(rows, places, strict=True):
        tokens, counts, clean = _of_row(row, place, tokenizer, completions_only)
        lengths.append(len(tokens))
        merged += not clean
        label = [token if there else NOT_COUNTED for token, there in zip(tokens, counts, strict=True)][:limit]
        if any(token != NOT_COUNTED for token in label[1:]):  # no token is predicted from nothing
            ids.append(tokens[:limit])
            labels.append(label)
    if not ids:
        where = places[0].rpartition(", row ")[0]
        raise UserError(f"{where}: cut to --max_length {limit}, no row has anything left to be learnt: give it more.")
    over = sum(length > limit for length in lengths)
    found = Lengths(int(np.median(lengths)), max(lengths), over, len(lengths), limit)
    counted = sum(token != NOT_COUNTED for label in labels for token in label[1:])
    data = Dataset.from_dict({"input_ids": ids, "labels": labels})
    return Counted(data, found, counted, sum(map(len, ids)), len(rows) - len(ids), merged)


def _of_row(row: Any, place: str, tokenizer: Any, completions_only: bool) -> tuple[list[int], list[bool], bool]:
    """Return the tokens, which of them count, and whether the prompt ends where a token does."""
    if isinstance(row, Chat):
        tokens = _render(row.messages, place, tokenizer)
        return tokens, _of_assistant(row, tokens, place, tokenizer, completions_only), True
    text = row if isinstance(row, str) else row[0] + row[1]
    tokens = list(tokenizer(text, verbose=False)["input_ids"])
    if tokenizer.eos_token_id is not None and tokens[-1:] != [tokenizer.eos_token_id]:
        tokens.append(tokenizer.eos_token_id)
    if isinstance(row, str) or not completions_only:
        return tokens, [True] * len(tokens), True
    prompt = list(tokenizer(row[0], verbose=False)["input_ids"])
    special = tokenizer.num_special_tokens_to_add()
    start = _common(prompt, tokens)
    return tokens, [place >= start for place in range(len(tokens))], start >= len(prompt) - special


def _render(messages: Sequence[Any], place: str, tokenizer: Any, *, answer: bool = False) -> list[int]:
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer)
    except (TemplateError, TypeError, KeyError, ValueError, IndexError) as error:
        raise UserError(f"{place}: the model's chat template does not take it: {one_line(error, 150)}") from error
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # those of the template are text


def _of_assistant(row: Chat, tokens: Sequence[int], place: str, tokenizer: Any, completions_only: bool) -> list[bool]:
    """Return which tokens are of the assistant's messages: what the template adds from one message to the next."""
    if not completions_only:
        return [True] * len(tokens)
    counts = [False] * len(tokens)
    answers = [n for n, message in enumerate(row.messages) if message["role"] == "assistant" and n >= row.start]
    if not answers:
        roles = ", ".join(dict.fromkeys(message["role"] for message in row.messages))
        raise UserError(
            f"{place} has no message of the assistant to learn (it has {roles}): remove it, or add "
            "--completion_only_loss False to learn everything."
        )
    for number in answers:
        asked = _render(row.messages[:number], place, tokenizer, answer=True) if number else []
        until = _render(row.messages[: number + 1], place, tokenizer)
        begin, end = _common(asked, tokens), _common(until, tokens)
        if end < len(until) - _SLACK or end <= begin:
            raise UserError(
                f"{place}: the chat template writes message {number} otherwise when others follow it, so that its "
                "tokens cannot be told: give another with --chat_template, or add --completion_only_loss False."
            )
        counts[begin:end] = [True] * (end - begin)
    return counts


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many tokens both begin with."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((place for place, (one, two) in pairs if one != two), min(len(left), len(right)))
