# SPDX-License-Identifier: Apache-2.0
"""Give the pieces of words their tags: a word's first piece has its tag, and the others are not scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.facts import Lengths
from hf_sam.cli.common.tag_schemes import inner_tag
from hf_sam.cli.common.tag_scores import UNSEEN
from hf_sam.cli.common.texts import check_positions, load_tokenizer

Rows = Sequence[Sequence[str]]


@dataclass
class Pieces:
    """One set as tokens: where each word begins in its row, -1 for a word that the model does not see."""

    data: Dataset
    places: list[list[int]]
    lengths: Lengths
    cut: int  # words beyond --max_length
    empty: list[str]  # words without a piece, such as a lone joiner


def load_word_tokenizer(args: ScriptArguments, config: Any) -> Any:
    """Return the tokenizer, set up for words that are already split.

    Raises:
        UserError: if there is none, it does not fit the model, or it cannot say which word a piece is of.
    """
    tokenizer = load_tokenizer(args, config)
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"--task tokens needs a fast tokenizer, which knows the word of each piece, and {type(tokenizer).__name__} "
            "is none: give another with --tokenizer_name, or another model."
        )
    tokenizer.padding_side = "right"
    return tokenizer


def split_words(
    words: Rows, tags: Sequence[Sequence[int]] | None, names: Sequence[str], tokenizer: Any, config: Any, limit: int,
    *, label_all: bool = False,
) -> Pieces:  # fmt: skip
    """Return one set as tokens, with a label for the first piece of each word.

    Args:
        words: Those of each sentence.
        tags: Their numbers, None for a set without.
        names: Of the tags.
        tokenizer: A fast one.
        config: Of the model.
        limit: Tokens that are kept of a sentence.
        label_all: Whether the later pieces of a word have its tag, too (inside of an entity that the word begins).

    Raises:
        UserError: if a cut sentence is still longer than the model can read.
    """
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    places: list[list[int]] = []
    lengths: list[int] = []
    cut, empty = 0, []
    special, space = tokenizer.num_special_tokens_to_add(), _space(tokenizer)
    inner = [names.index(inner_tag(name, names)) for name in names]
    for start in range(0, len(words), 1000):
        batch = [_spaced(sentence, space) for sentence in words[start : start + 1000]]
        encoded = tokenizer(batch, is_split_into_words=True, truncation=True, max_length=limit, verbose=False)
        whole = tokenizer(batch, is_split_into_words=True, add_special_tokens=False, truncation=False, verbose=False)
        for row, sentence in enumerate(batch):
            of_piece = encoded.word_ids(row)
            there = _first_pieces(of_piece, len(sentence))
            all_there = _first_pieces(whole.word_ids(row), len(sentence))
            cut += sum(place < 0 <= full for place, full in zip(there, all_there, strict=True))
            empty += [word for word, full in zip(words[start + row], all_there, strict=True) if full < 0]
            ids.append(encoded["input_ids"][row])
            places.append(there)
            lengths.append(len(whole["input_ids"][row]) + special)
            if tags is not None:
                labels.append(_labels(of_piece, there, tags[start + row], inner if label_all else None))
    check_positions(max(map(len, ids)), tokenizer, config, limit)
    data = Dataset.from_dict({"input_ids": ids, **({} if tags is None else {"labels": labels})})
    over = sum(length > limit for length in lengths)
    found = Lengths(int(np.median(lengths)), max(lengths), over, len(lengths), limit)
    return Pieces(data, places, found, cut, empty)


def _space(tokenizer: Any) -> str:
    """Return what has to stand before a word for its pieces to be those that it has in a text: nothing, or a space.

    Tokenizers of bytes, such as GPT-2's, take the space before a word for a part of it.
    """
    text = tokenizer("a film", add_special_tokens=False)
    pieces = [piece for piece, word in zip(text["input_ids"], text.word_ids(), strict=True) if word]
    for space in ("", " "):
        apart = tokenizer(["a", f"{space}film"], is_split_into_words=True, add_special_tokens=False)
        if [piece for piece, word in zip(apart["input_ids"], apart.word_ids(), strict=True) if word == 1] == pieces:
            return space
    return ""


def _spaced(sentence: Sequence[str], space: str) -> list[str]:
    """Return the words with a space before each but the first, if the tokenizer wants it."""
    return [space + word if place and word.strip() else word for place, word in enumerate(sentence)]


def piece_notes(split: str, pieces: Pieces, limit: int) -> list[str]:
    """Return what people should know about words that the model does not see."""
    notes = []
    count = sum(map(len, pieces.places))
    if pieces.cut:
        notes.append(
            f"{split}: {pieces.cut:,} of {count:,} words ({pieces.cut / count:.1%}) are cut at --max_length {limit}: "
            "nothing is learnt of them, and none is scored"
        )
    if pieces.empty:
        shown = one_line(", ".join(sorted(set(map(repr, pieces.empty)))[:5]), 60)
        notes.append(f"{split}: {len(pieces.empty):,} words are nothing to the tokenizer ({shown}), and are not scored")
    return notes


def _first_pieces(of_piece: Sequence[int | None], count: int) -> list[int]:
    places = [-1] * count
    for place, word in enumerate(of_piece):
        if word is not None and places[word] < 0:
            places[word] = place
    return places


def _labels(
    of_piece: Sequence[int | None], places: Sequence[int], tags: Sequence[int], inner: Sequence[int] | None
) -> list[int]:
    labels = [UNSEEN] * len(of_piece)
    for place, word in enumerate(of_piece):
        if word is not None and places[word] == place:
            labels[place] = tags[word]
        elif word is not None and inner is not None:
            labels[place] = inner[tags[word]]
    return labels
