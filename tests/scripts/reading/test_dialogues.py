# SPDX-License-Identifier: Apache-2.0
"""Is a row for a language model read as the chat, the prompt with its completion, or the text that it is?"""

from __future__ import annotations

from typing import Any

import pytest

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.reading.dialogues import Chat, find_columns, rows_of
from hf_sam.cli.common.reading.tables import Table
from tests.looped import looped

ASKED, ANSWERED = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
BOTH = Chat([ASKED, ANSWERED])


def read(columns: dict[str, list[Any]], **named: str) -> tuple[Any, list[Any]]:
    table = Table("--train_file a.jsonl", columns)
    found = find_columns(table, **named)
    return found, rows_of(table, found)


@looped
@pytest.mark.parametrize(
    ("columns", "kind", "row"),
    [
        ({"id": [1], "messages": [[ASKED, ANSWERED]]}, "chat", BOTH),
        ({"conversations": [[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]]}, "chat", BOTH),
        ({"messages": ['[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]']}, "chat", BOTH),
        ({"messages": [[ASKED, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]]}, "chat", BOTH),
        ({"prompt": [[ASKED]], "completion": [[ANSWERED]]}, "pair", Chat([ASKED, ANSWERED], start=1)),
        ({"prompt": ["a"], "completion": [" b"], "text": ["c"]}, "pair", ("a", " b")),
        ({"instruction": ["a"], "input": ["of c"], "output": ["b"]}, "pair", ("a\n\nof c", "b")),
        ({"instruction": ["a"], "context": [""], "response": ["b"], "category": ["x"]}, "pair", ("a", "b")),
        ({"question": ["a"], "answer": ["b"]}, "pair", ("a", "b")),
        ({"text": ["a"], "label": [1]}, "text", "a"),
        ({"lyrics": ["a"]}, "text", "a"),
    ],
)
def test_a_row_is_what_its_columns_say(columns: dict[str, list[Any]], kind: str, row: Any) -> None:
    found, rows = read(columns)
    assert (found.kind, rows) == (kind, [row])
    assert found.as_written == (kind == "pair" and "completion" in columns)


def test_columns_can_be_named() -> None:
    columns = {"messages": [[ASKED, ANSWERED]], "q": ["a"], "a": ["b"], "t": ["c"]}
    assert read(columns, prompt="q", completion="a")[1] == [("a", "b")]
    assert read(columns, text="t")[1] == ["c"]


@looped
@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"messages": [[ASKED, ANSWERED], []]}, ["row 1", "'messages'", "a list of messages"]),
        ({"messages": [[ASKED, "b"]]}, ["row 0", "message 1", "role and content"]),
        ({"messages": [[ASKED, {"role": "assistant", "content": None}]]}, ["row 0", "message 1", "content"]),
        ({"prompt": ["a", "a"], "completion": ["b", ""]}, ["row 1", "'completion'", "no text"]),
        ({"prompt": ["a", None], "completion": ["b", "b"]}, ["row 1", "'prompt'", "no text"]),
        ({"text": ["a", ""]}, ["row 1", "'text'"]),
        ({"a": ["a"], "b": ["b"]}, ["a, b", "--messages_column", "--prompt_column", "--text_column"]),
    ],
)
def test_a_row_that_is_none_is_named(columns: dict[str, list[Any]], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read(columns)
    missing = [word for word in ("--train_file a.jsonl", *words) if word not in str(caught.value)]
    assert not missing, caught.value
