# SPDX-License-Identifier: Apache-2.0
"""Task: a language model learns chats, completions of prompts, or texts, through TRL's SFTTrainer."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.counted_tokens import Counted, as_chats, count_tokens, set_template
from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.facts import Facts
from hf_sam.cli.common.held_out import held_out_rows
from hf_sam.cli.common.labelled import chosen_rows
from hf_sam.cli.common.models import add_lora, load_config, load_model
from hf_sam.cli.common.reading.dialogues import Chat, Columns, find_columns, rows_of
from hf_sam.cli.common.reading.plain_text import read_text_folder
from hf_sam.cli.common.reading.sources import Tables, read_splits
from hf_sam.cli.common.reading.tables import Table
from hf_sam.cli.common.repeated import count_repeated, repeated_text
from hf_sam.cli.common.sft_trainer import check_trl, packed, sft_trainer
from hf_sam.cli.common.texts import check_positions, load_tokenizer
from hf_sam.cli.tasks.base import Split, Task

DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-5,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "num_train_epochs": 3,
    "max_length": 1024,
    "metric_for_best_model": "loss",
}
LORA_ABOVE = 1_000_000_000  # parameters, of which each takes 20 bytes to be trained, with AdamW's and SAM's copies
LORA_R = 16
LORA_RATE = 1e-4  # adapters learn little below it
ROW = "#row"  # a column with each row's number in its file
WHAT = {
    "chat": "chats, by the chat template",
    "pair": "prompts with completions",
    "text": "texts",
}


def build(args: ScriptArguments, training: Any) -> Task:
    """Read the rows, turn them into tokens, then load the model."""
    _check_arguments(args, training)
    facts = Facts()
    config = load_config(args, None, keep_labels=True)
    tables = read_splits(args, training, "texts", lambda *where: _read_folder(args, *where))
    columns = find_columns(
        next(iter(tables.values())), chat=args.messages_column, prompt=args.prompt_column,
        completion=args.completion_column, text=args.text_column,
    )  # fmt: skip
    tables = {split: _numbered(table, columns) for split, table in tables.items()}
    tables = _with_evaluation(args, training, tables, facts)
    rows = {split: rows_of(table, columns) for split, table in tables.items()}
    tokenizer = load_tokenizer(args, config)
    set_template(tokenizer, args.chat_template)
    facts.problem = _rule(columns, rows, tokenizer)
    if columns.kind == "pair" and not columns.as_written:
        rows = {split: as_chats(values, tokenizer) for split, values in rows.items()}
    _check_template(args, rows, tables, tokenizer)
    sets = {}
    for split, values in rows.items():
        sets[split] = count_tokens(
            values, _places(tables[split]), tokenizer, args.max_length, completions_only=args.completion_only_loss
        )
        check_positions(max(map(len, sets[split].data["input_ids"])), tokenizer, config, args.max_length)
        facts.lengths[split] = sets[split].lengths
        _say_what_counts(split, sets[split], facts)
    _describe(tables, columns, rows, facts)
    model = load_model(args, AutoModelForCausalLM, config)
    return _task(args, training, rows, sets, model=model, processing_class=tokenizer, facts=facts)


def _task(
    args: ScriptArguments, training: Any, rows: dict[str, list[Any]], sets: dict[str, Counted], **parts: Any
) -> Task:
    facts, model = parts["facts"], parts["model"]
    count = sum(parameter.numel() for parameter in model.parameters())
    if args.lora_r is None and count >= LORA_ABOVE and training.do_train:
        args = dataclasses.replace(args, lora_r=LORA_R)
        facts.notes.append(f"{count:,} parameters: LoRA of rank {LORA_R} is trained (--lora_r 0 trains all weights)")
    if args.lora_r and training.do_train and training.learning_rate < LORA_RATE:
        facts.warnings.append(f"--learning_rate {training.learning_rate:g} is low for LoRA: 2e-4 is usual")
    parts["model"] = add_lora(args, model)
    train = sets["train"].data if "train" in sets else None
    if args.packing and train is not None:
        before, train = len(train), packed(train, args.max_length)
        facts.notes.append(f"{before:,} training rows are packed into {len(train):,} of up to {args.max_length} tokens")
    is_chat = isinstance(next(iter(rows.values()))[0], Chat)
    return Task(
        name="sft",
        train=train,
        evaluation={"": Split(sets["validation"].data)} if "validation" in sets else {},
        test={},
        data_collator=DataCollatorForSeq2Seq(parts["processing_class"]),  # to measure with; TRL's trainer has its own
        compute_loss=None,
        compute_metrics=None,
        format_predictions=None,
        pipeline="text-generation",
        auto_class="AutoModelForCausalLM",
        example='[{"role": "user", "content": "A question."}]' if is_chat else '"A prompt."',
        card={"tasks": "text-generation", "tags": ["trl", "sft"], "dataset": args.dataset_name or "local texts"},
        trainer=partial(sft_trainer, padding_free=args.packing),
        has_classes=False,
        **parts,
    )


def _check_arguments(args: ScriptArguments, training: Any) -> None:
    check_trl("sft")
    args.refuse("sft", "text_pair_column", "image_column", "label_column", "label_columns", "problem", "class_weights")
    if args.label_noise:
        raise UserError("--label_noise flips classes, and --task sft has none: leave it at 0.")
    if args.fresh_dropout:
        raise UserError("--fresh_dropout does nothing with --task sft: leave it out.")
    if training.do_predict:
        raise UserError(
            "--do_predict writes predictions of classes, and a language model has none: leave it out "
            "(--validation_file evaluates; the summary shows how to generate)."
        )
    if args.packing and training.ascent_fraction != 1:
        raise UserError("--packing makes one row of a batch, of which --ascent_fraction can take no part: drop one.")
    name = training.metric_for_best_model
    if name is not None and name.removeprefix("eval_") not in ("loss", "perplexity"):
        raise UserError(f"--metric_for_best_model {name} is unknown for a language model: use loss or perplexity.")
    if name is not None:
        training.greater_is_better = False


def _read_folder(args: ScriptArguments, argument: str, path: str, flat: bool) -> Table:
    del flat
    where = f"--{argument} {path}"
    columns, notes = read_text_folder(where, Path(path), encoding=args.encoding, flat=True)
    return Table(where, {"text": columns["text"]}, notes, unnamed=True)


def _numbered(table: Table, columns: Columns) -> Table:
    """Check all rows, and let each keep its number in the file."""
    numbers = list(range(len(rows_of(table, columns))))
    if isinstance(table.source, dict):
        return dataclasses.replace(table, source={**table.source, ROW: numbers})
    return dataclasses.replace(table, source=table.source.add_column(ROW, numbers))


def _places(table: Table) -> list[str]:
    return [f"{table.where}, row {row}" for row in table.values(ROW)]


def _with_evaluation(args: ScriptArguments, training: Any, tables: Tables, facts: Facts) -> Tables:
    facts.notes += [f"{split}: {note}" for split, table in tables.items() for note in table.notes]
    if training.do_eval and "validation" not in tables:
        table = tables["train"]
        train, held = held_out_rows(None, len(table), args.validation_share, table.where)
        evaluation = table.select(held)
        evaluation.where = f"held out of {table.where} (--validation_share)"
        tables = {**tables, "train": table.select(train), "validation": evaluation}
        facts.notes.append(f"{len(held):,} training rows are held out for evaluation, the same in every run")
    return {split: chosen_rows(args, training, split, table) for split, table in tables.items()}


def _rule(columns: Columns, rows: dict[str, list[Any]], tokenizer: Any) -> str:
    if columns.kind != "pair" or isinstance(next(iter(rows.values()))[0], Chat):
        return WHAT["text" if columns.kind == "text" else "chat"]
    if columns.as_written:
        return "prompts with completions, which go on where the prompts end"
    return "questions with answers, " + (
        "as chats by the chat template" if tokenizer.chat_template else "between headings (there is no chat template)"
    )


def _check_template(args: ScriptArguments, rows: dict[str, list[Any]], tables: Tables, tokenizer: Any) -> None:
    chats = next(
        (tables[split].where for split, values in rows.items() if any(isinstance(v, Chat) for v in values)), ""
    )
    if chats and tokenizer.chat_template is None:
        source = args.tokenizer_name or args.model_name_or_path or args.config_name
        raise UserError(
            f"{chats} holds chats, and the tokenizer of {source} has no chat template: take a model made for chats, "
            "or give a template with --chat_template (a file, or plain)."
        )


def _say_what_counts(split: str, found: Counted, facts: Facts) -> None:
    facts.notes.append(f"{split}: the loss counts {found.counted:,} of {found.total:,} tokens")
    if found.dropped:
        facts.warnings.append(
            f"{split}: {found.dropped:,} rows are left out: cut at --max_length, nothing of them is to be learnt"
        )
    if found.merged:
        facts.warnings.append(
            f"{split}: in {found.merged:,} rows the prompt ends inside of a token, unlike what the model will see: end "
            "prompts with a line break, or begin completions with a space"
        )


def _describe(tables: Tables, columns: Columns, rows: dict[str, list[Any]], facts: Facts) -> None:
    facts.sources = {split: table.where for split, table in tables.items()}
    facts.columns = " and ".join(columns.names)
    shown = {split: [_shown(row) for row in values] for split, values in rows.items()}
    if "train" not in shown:
        return
    count = len(shown["train"])
    facts.examples = [shown["train"][row] for row in sorted({0, count // 2, count - 1})]
    if "validation" in shown:
        flat = {split: ["\0".join(pair) for pair in values] for split, values in shown.items()}
        if repeated := count_repeated([flat["train"]], [flat["validation"]]):
            facts.warnings.append(repeated_text(repeated, "validation", len(flat["validation"])))


def _shown(row: Any) -> tuple[str, str]:
    """Return what goes in and what is to come out, for people."""
    if isinstance(row, Chat):
        texts = [message["content"] for message in row.messages]
        return " || ".join(texts[:-1]), texts[-1]
    return (row, "") if isinstance(row, str) else row
