# SPDX-License-Identifier: Apache-2.0
"""Corrupted texts: typos, dropped words and capitals, in the words that the tokens stand for."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SHARES = (0.05, 0.1, 0.15, 0.2, 0.3)
"""Share of the words that are changed, by severity; for capitals five times as many, at most all."""
LONGEST = 100_000
"""A tokenizer that says it takes more tokens than this does not know how many the model takes."""
KEYS = {
    "q": "wa", "w": "qes", "e": "wrd", "r": "etf", "t": "ryg", "y": "tuh", "u": "yij", "i": "uok", "o": "ipl",
    "p": "ol", "a": "qsz", "s": "awdx", "d": "sefc", "f": "drgv", "g": "fthb", "h": "gyjn", "j": "hukm", "k": "jil",
    "l": "kop", "z": "asx", "x": "zsdc", "c": "xdfv", "v": "cfgb", "b": "vghn", "n": "bhjm", "m": "njk",
}  # fmt: skip
"""Neighbours on a keyboard."""
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Tokens:
    """How words become tokens and back.

    Attributes:
        tokenizer: of transformers.
        special: ids that stand between texts.
        padding: id of what fills up.
        length: of every example, where all have the same; None where they differ.
        most: tokens that the model takes.
    """

    tokenizer: Any
    special: frozenset[int]
    padding: int
    length: int | None
    most: int

    @classmethod
    def of(cls, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> Tokens:
        """Return it for a tokenizer and all examples.

        Raises:
            ValueError: if `tokenizer` is none.
            NotImplementedError: if the examples hold something else that goes by token, labels among it.
        """
        if not hasattr(tokenizer, "all_special_ids"):
            raise ValueError(
                "`RobustnessAnalyzer(processing_class=...)` must be the tokenizer for corrupted texts, and is "
                f"{type(tokenizer).__name__}."
            )
        lengths = [_len(row["input_ids"]) for row in rows]
        for name in set(rows[0]) - set(PER_TOKEN):
            if max(lengths) > 1 and all(_len(row[name]) == length for row, length in zip(rows, lengths, strict=True)):
                raise NotImplementedError(
                    f"Corrupted texts have other tokens, which the column {name!r} with one value a token would not "
                    "fit. Corrupt the texts before they become tokens, and give them to `on(...)`."
                )
        limit = tokenizer.model_max_length
        most = max([*lengths, limit] if limit < LONGEST else lengths)
        padding = tokenizer.pad_token_id
        length = lengths[0] if len(set(lengths)) == 1 and len(lengths) > 1 else None
        return cls(tokenizer, frozenset(tokenizer.all_special_ids), 0 if padding is None else padding, length, most)


def corrupted_text(
    row: Mapping[str, Any], name: str, severity: int, tokens: Tokens, stream: random.Random
) -> dict[str, Any]:
    """Return an example with corrupted words, in new tokens.

    Args:
        row: with `input_ids`.
        name: of `TEXTS`.
        severity: 1 to 5.
        tokens: how words become tokens.
        stream: of what is random.
    """
    change, factor = TEXTS[name]
    share = min(1.0, factor * SHARES[severity - 1])
    return with_texts(row, tokens, lambda text: _changed(text, change, share, stream))


def with_texts(row: Mapping[str, Any], tokens: Tokens, change: Callable[[str], str]) -> dict[str, Any]:
    """Return an example whose texts, those between special tokens, are changed; a text that stays keeps its tokens."""
    columns = {name: _listed(row[name]) for name in PER_TOKEN if name in row}
    shown = columns.get("attention_mask", [1] * len(columns["input_ids"]))
    ids = [token for token, seen in zip(columns["input_ids"], shown, strict=True) if seen]
    types = [kind for kind, seen in zip(columns.get("token_type_ids", shown), shown, strict=True) if seen]
    pieces: list[tuple[int, int]] = []
    for start, stop, is_text in _parts(ids, tokens.special):
        kept = ids[start:stop]
        if is_text:
            before = tokens.tokenizer.decode(kept)
            after = change(before)
            if after != before:
                kept = tokens.tokenizer(after, add_special_tokens=False)["input_ids"]
        pieces += [(token, types[start]) for token in kept]
    pieces = _cut(pieces, tokens.length or tokens.most, tokens.special)
    fill = (tokens.length or 0) - len(pieces)
    made = {
        "input_ids": [token for token, _ in pieces] + [tokens.padding] * fill,
        "attention_mask": [1] * len(pieces) + [0] * fill,
        "token_type_ids": [kind for _, kind in pieces] + [0] * fill,
    }
    return {**row, **{name: _like(made[name], row[name]) for name in columns}}


def _parts(ids: Sequence[int], special: frozenset[int]) -> Iterator[tuple[int, int, bool]]:
    """Yield the stretches of special tokens and of others."""
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or (ids[i] in special) != (ids[start] in special):
            yield start, i, ids[start] not in special
            start = i


def _cut(pieces: list[tuple[int, int]], most: int, special: frozenset[int]) -> list[tuple[int, int]]:
    """Return at most so many tokens; what ends the text stays its end."""
    if len(pieces) <= most:
        return pieces
    return [*pieces[: most - 1], pieces[-1]] if pieces[-1][0] in special else pieces[:most]


def _changed(text: str, change: Callable[[str, random.Random], str], share: float, stream: random.Random) -> str:
    parts = re.split(r"(\s+)", text)
    made = [change(part, stream) if part.strip() and stream.random() < share else part for part in parts]
    result = re.sub(r"[ \t]{2,}", " ", "".join(made))
    return result if result.strip() else text  # some model may not take an empty text


def _typo(word: str, stream: random.Random) -> str:
    """Return the word with two letters exchanged, one left out, doubled, or mistaken for a neighbour on a keyboard."""
    places = [i for i, letter in enumerate(word) if letter.isalpha()]
    if len(places) < 3:
        return word
    kind, i = stream.randrange(4), stream.choice(places[1:])
    if kind == 0:
        return word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :]
    if kind == 1:
        return word[:i] + word[i + 1 :]
    if kind == 2:
        return word[:i] + word[i] + word[i:]
    near = stream.choice(KEYS.get(word[i].lower(), word[i]))
    return word[:i] + (near.upper() if word[i].isupper() else near) + word[i + 1 :]


TEXTS: dict[str, tuple[Callable[[str, random.Random], str], float]] = {
    "typos": (_typo, 1),
    "dropped words": (lambda word, stream: "", 1),
    "capitals": (lambda word, stream: word.upper(), 5),
}
"""By name: what happens to a word, and to how many times the share of the words."""


def _len(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.shape[0] if value.dim() else 0
    return len(value) if isinstance(value, Sized) and not isinstance(value, str) else 0


def _listed(value: Any) -> list[int]:
    return [int(each) for each in value]


def _like(values: list[int], old: Any) -> Any:
    return torch.tensor(values, dtype=old.dtype) if isinstance(old, Tensor) else values
