# SPDX-License-Identifier: Apache-2.0
"""Task: a tag for each word, of entities or of parts of speech, from CoNLL files, lists in tables, or the Hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.facts import Facts
from hf_sam.cli.common.losses import balanced_weights, tag_loss
from hf_sam.cli.common.models import add_lora, load_config, load_model, set_labels
from hf_sam.cli.common.reading.conll import read_sentences
from hf_sam.cli.common.reading.sources import Tables, read_splits
from hf_sam.cli.common.reading.tables import Table
from hf_sam.cli.common.reading.word_columns import WordColumns, find_word_columns, with_sentences
from hf_sam.cli.common.repeated import count_repeated, repeated_text
from hf_sam.cli.common.tag_scores import TagScores, check_best_tag_metric
from hf_sam.cli.common.tagged import Tagged, tag_sets, without_empty
from hf_sam.cli.common.word_pieces import Pieces, load_word_tokenizer, piece_notes, split_words
from hf_sam.cli.tasks.base import Split, Task

DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "num_train_epochs": 3,
    "metric_for_best_model": "loss",
}
NOT_SEEN = "_"  # in place of the tag of a word that the model does not see


@dataclass
class SentenceSplit(Split):
    """A set of sentences: their words, and where each word begins in the tokens."""

    file_name: str = "predictions.conll"
    words: list[list[str]] = field(default_factory=list)
    places: list[list[int]] = field(default_factory=list)


@dataclass
class TokensTask(Task):
    """A task whose predictions are written as words with tags."""

    names: list[str] = field(default_factory=list)

    def write_predictions(self, split: Split, logits: Any, folder: Path) -> Path:
        """Write a word a line with its tag behind a tab, and a blank line after each sentence."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        path = folder / split.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        sentences = zip(split.words, split.places, np.asarray(logits).argmax(axis=-1), strict=True)  # type: ignore[attr-defined]
        with path.open("w", encoding="utf-8") as file:
            for words, places, numbers in sentences:
                for word, place in zip(words, places, strict=True):
                    tag = NOT_SEEN if place < 0 else self.names[int(numbers[place])]
                    file.write(f"{' '.join(word.split()) or NOT_SEEN}\t{tag}\n")
                file.write("\n")
        return path


def build(args: ScriptArguments, training: Any) -> Task:
    """Read the sentences, decide what the tags are, then load the model."""
    args.refuse("tokens", "text_pair_column", "image_column", "label_columns", "problem")
    if args.label_noise:
        raise UserError("--label_noise flips classes of whole rows, not tags: leave it at 0.")
    facts = Facts()
    config = load_config(args, None, keep_labels=True)
    tables = read_splits(args, training, "sentences", _no_folder, read_sentences)
    columns = _columns(args, tables, facts)
    found = tag_sets(args, training, tables, columns, config, facts)
    check_best_tag_metric(training, found.scheme)
    if "train" in found.tables:
        set_labels(config, found.names)
    tokenizer = load_word_tokenizer(args, config)
    sets = {}
    for split, words in found.words.items():
        several = args.label_all_pieces and split == "train"  # words are scored once, however many pieces they have
        sets[split] = split_words(
            words, found.tags.get(split), found.names, tokenizer, config, args.max_length, label_all=several
        )
        facts.lengths[split] = sets[split].lengths
        facts.warnings += piece_notes(split, sets[split], args.max_length)
    _describe(found, facts)
    model = load_model(args, AutoModelForTokenClassification, config, new_head=found.new_head)
    return _task(args, training, found, sets, model=add_lora(args, model), processing_class=tokenizer, facts=facts)


def _task(args: ScriptArguments, training: Any, found: Tagged, sets: dict[str, Pieces], **parts: Any) -> Task:
    labels = [tag for row in sets["train"].data["labels"] for tag in row if tag >= 0] if "train" in sets else []
    weights = balanced_weights(labels, len(found.names)) if args.class_weights and labels else None
    padding = 8 if training.fp16 else None
    return TokensTask(
        name="tokens",
        train=sets["train"].data if "train" in sets else None,
        evaluation={"": _split(found, sets, "validation")} if "validation" in sets else {},
        test={"": _split(found, sets, "test")} if "test" in sets else {},
        data_collator=DataCollatorForTokenClassification(parts["processing_class"], pad_to_multiple_of=padding),
        compute_loss=tag_loss(training.label_smoothing_factor, weights),
        compute_metrics=TagScores(found.names, found.scheme),
        format_predictions=lambda logits: [found.names[number] for number in np.asarray(logits).argmax(axis=-1)],
        pipeline="token-classification",
        auto_class="AutoModelForTokenClassification",
        example='"A sentence."',
        card={"tasks": "token-classification", "dataset": args.dataset_name or "local sentences"},
        names=found.names,
        **parts,
    )


def _split(found: Tagged, sets: dict[str, Pieces], name: str) -> SentenceSplit:
    pieces = sets[name]
    return SentenceSplit(pieces.data, name in found.tags, words=found.words[name], places=pieces.places)


def _no_folder(argument: str, path: str, flat: bool) -> Table:
    del flat
    raise UserError(f"--{argument} {path}: --task tokens reads files, with tags in them: give --{argument[:-4]}_file.")


def _columns(args: ScriptArguments, tables: Tables, facts: Facts) -> WordColumns:
    """Find the columns in the first set; the others have to have the same."""
    for split, table in tables.items():
        tables[split] = with_sentences(table, args.text_column)
    first = next(iter(tables.values()))
    tagged = bool(tables.keys() & {"train", "validation"})
    columns = find_word_columns(first, words=args.text_column, tags=args.label_column, tagged=tagged)
    facts.columns = f"words from {columns.words}" + (f", tags from {columns.tags}" if columns.tags else "")
    facts.notes += columns.notes
    facts.notes += [f"{split}: {note}" for split, table in tables.items() for note in table.notes]
    for split, table in tables.items():
        if args.drop_empty_texts and split != "test":  # a prediction belongs to each row
            tables[split] = without_empty(table, columns.words)
            if left_out := len(table) - len(tables[split]):
                facts.notes.append(f"{split}: {left_out:,} sentences without words are left out (--drop_empty_texts)")
    return columns


def _describe(found: Tagged, facts: Facts) -> None:
    facts.sources = {split: table.where for split, table in found.tables.items()}
    facts.problem = f"tags: {found.scheme.rule}"
    facts.warnings += found.scheme.warnings
    sentences = {split: [" ".join(words) for words in rows] for split, rows in found.words.items()}
    if "train" not in sentences:
        return
    count = len(sentences["train"])
    facts.examples = [
        (sentences["train"][row], one_line(" ".join(found.written["train"][row]), 60))
        for row in sorted({0, count // 2, count - 1})
    ]
    for split in ("validation", "test"):
        if split in sentences and (repeated := count_repeated([sentences["train"]], [sentences[split]])):
            facts.warnings.append(repeated_text(repeated, split, len(sentences[split])))
