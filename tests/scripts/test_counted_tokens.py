# SPDX-License-Identifier: Apache-2.0
"""Does the loss of a language model count the answers, all of them and nothing else?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_sam.cli.common.counted_tokens import as_chats, count_tokens, set_template
from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.reading.dialogues import Chat
from tests.scripts.tiny_models import byte_tokenizer

TALK = [
    {"role": role, "content": text}
    for role, text in (
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "?"),
        ("assistant", "No"),
    )
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


def learnt(rows: list[Any], tokenizer: Any, *, limit: int = 100, only: bool = True) -> list[str]:
    places = [f"a.jsonl, row {row}" for row in range(len(rows))]
    data = count_tokens(rows, places, tokenizer, limit, completions_only=only).data
    return [tokenizer.decode([token for token in row if token != -100]) for row in data["labels"]]


def test_of_a_chat_each_message_of_the_assistant_with_its_end(tokenizer: Any) -> None:
    assert learnt([Chat(TALK)], tokenizer) == ["Hello<|im_end|>\nNo<|im_end|>\n"]
    assert learnt([Chat(TALK, start=3)], tokenizer) == ["No<|im_end|>\n"]  # what came before is the prompt
    assert learnt([Chat(TALK)], tokenizer, only=False)[0].startswith("<|im_start|>system\nBe kind.")


def test_of_a_prompt_with_its_completion_the_completion(tokenizer: Any) -> None:
    assert learnt([("What is it?", " Paris")], tokenizer) == [" Paris<|end|>"]
    assert learnt(["What is it?"], tokenizer) == ["What is it?<|end|>"]
    found = count_tokens([("Pari", "s")], ["row 0"], tokenizer, 100, completions_only=True)
    assert found.merged == 1  # "Paris" is one token


def test_questions_become_chats_where_there_is_a_template(tokenizer: Any) -> None:
    assert learnt(as_chats([("Hi", "Hello")], tokenizer), tokenizer) == ["Hello<|im_end|>\n"]
    bare = byte_tokenizer(None)
    assert as_chats([("Hi", "Hello")], bare) == [("### Instruction:\nHi\n\n### Response:\n", "Hello")]


def test_the_plain_template_ends_each_answer(tmp_path: Path) -> None:
    bare = byte_tokenizer(None)
    set_template(bare, "plain")
    text = bare.apply_chat_template(TALK, tokenize=False)
    assert text == "system: Be kind.\nuser: Hi\nassistant: Hello<|end|>\nuser: ?\nassistant: No<|end|>\n"
    assert learnt([Chat(TALK)], bare) == [" Hello<|end|>\n No<|end|>\n"]
    (tmp_path / "mine.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    set_template(bare, str(tmp_path / "mine.jinja"))
    assert bare.apply_chat_template(TALK, tokenize=False) == "Be kind."


def test_rows_that_are_cut_before_their_answer_are_left_out(tokenizer: Any) -> None:
    rows = [("What " * 30, " Paris"), ("What?", " Paris")]
    found = count_tokens(rows, ["row 0", "row 1"], tokenizer, 20, completions_only=True)
    assert (len(found.data), found.dropped, found.lengths.cut) == (1, 1, 1)
    with pytest.raises(UserError, match=r"a\.jsonl: cut to --max_length 20, no row has anything left"):
        count_tokens(rows[:1], ["a.jsonl, row 0"], tokenizer, 20, completions_only=True)


@pytest.mark.parametrize(
    ("template", "talk", "words"),
    [
        (None, TALK[:2], ["row 0 has no message of the assistant", "system, user", "--completion_only_loss False"]),
        ("{{ raise_exception('roles must alternate') }}", TALK, ["row 0", "chat template", "roles must alternate"]),
        ("{% for m in messages %}{{ m.content }}{{ messages | length }} {% endfor %}", TALK,
         ["row 0", "message 2 otherwise when others follow", "--chat_template"]),
    ],
)  # fmt: skip
def test_a_chat_that_cannot_be_learnt_is_named(template: str | None, talk: list[Any], words: list[str]) -> None:
    tokenizer = byte_tokenizer() if template is None else byte_tokenizer(template)
    with pytest.raises(UserError) as caught:
        learnt([Chat(talk)], tokenizer)
    assert not [word for word in words if word not in str(caught.value)], caught.value
