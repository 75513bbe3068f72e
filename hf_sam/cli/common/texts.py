# SPDX-License-Identifier: Apache-2.0
"""How do texts become tokens? Checked, cut to a length, and it is known how many were cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.data import check_values
from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.facts import Lengths
from hf_sam.cli.common.models import LOADING_ERRORS
from hf_sam.cli.common.reading.tables import Table


def load_tokenizer(args: ScriptArguments, config: Any) -> Any:
    """Return the model's tokenizer, or the named one.

    Raises:
        UserError: if there is none, or it has tokens that the model does not know.
    """
    source = args.tokenizer_name or args.model_name_or_path or args.config_name
    if source is None:
        raise UserError(f"--model_type {args.model_type} needs a tokenizer: give --tokenizer_name.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=args.model_revision, trust_remote_code=args.trust_remote_code
        )
    except LOADING_ERRORS as error:
        raise UserError(f"no tokenizer in {source} (--tokenizer_name): {one_line(error)}") from error
    if tokenizer.pad_token is None:  # GPT and Llama have none, and no batch goes without
        tokenizer.pad_token = tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id
    if len(tokenizer) > getattr(config, "vocab_size", len(tokenizer)):
        raise UserError(f"{source} has {len(tokenizer)} tokens, the model only {config.vocab_size}: they do not fit.")
    return tokenizer


def text_values(table: Table, columns: Sequence[str]) -> list[list[str]]:
    """Return the columns of texts.

    Raises:
        UserError: if a column is missing, or rows hold no text.
    """
    found = []
    for name in columns:
        if name not in table.names:
            raise UserError(f"{table.where} has no column {name!r}; it has {one_line(', '.join(table.names), 200)}.")
        values = table.values(name)
        check_values(values, table.where, name)
        found.append(list(values))
    return found


def tokenize(
    columns: Sequence[Sequence[str]], labels: Sequence[Any] | None, tokenizer: Any, config: Any, limit: int
) -> tuple[Dataset, Lengths]:
    """Return one set as tokens, and how long its texts were.

    Raises:
        UserError: if a cut text is still longer than the model can read.
    """
    rows = Dataset.from_dict({str(place): list(texts) for place, texts in enumerate(columns)})
    keys = rows.column_names
    long: list[int] = []

    def encode(batch: dict[str, list[str]]) -> Any:
        encoded = tokenizer(*(batch[key] for key in keys), truncation=True, max_length=limit)
        full = [row for row, tokens in enumerate(encoded["input_ids"]) if len(tokens) >= limit]
        if full:
            pieces = [[batch[key][row] for row in full] for key in keys]
            long.extend(len(tokens) for tokens in tokenizer(*pieces, truncation=False, verbose=False)["input_ids"])
        return encoded

    encoded = rows.map(encode, batched=True, remove_columns=keys, desc="Tokenizing")
    kept = np.array([len(tokens) for tokens in encoded["input_ids"]])
    _check_positions(int(kept.max()), tokenizer, config, limit)
    all_lengths = np.concatenate([kept[kept < limit], np.array(long, dtype=int)])
    over = int((all_lengths > limit).sum())
    lengths = Lengths(int(np.median(all_lengths)), int(all_lengths.max()), over, len(rows), limit)
    return encoded if labels is None else encoded.add_column("labels", list(labels)), lengths


def _check_positions(longest: int, tokenizer: Any, config: Any, limit: int) -> None:
    most = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or longest)
    if longest > most:
        raise UserError(f"--max_length {limit}: the model reads at most {most} tokens: add --max_length {most}.")
