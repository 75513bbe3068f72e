# SPDX-License-Identifier: Apache-2.0
"""Say what has been understood and what will be done: a page to read before the time is spent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch.utils.data import Subset

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.errors import one_line
from hf_sam.cli.tasks.base import Task
from hf_sam.variants import VARIANTS

_BAR = 24  # characters of the longest bar
_CLASSES = 12  # classes that are listed; of more, the largest and the smallest
Line = tuple[str, str]


def show_before(args: ScriptArguments, training: Any, task: Task, *, console: Console | None = None) -> None:
    """Print the page."""
    console = console or Console()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in before_lines(args, training, task):
        table.add_row(Text(name, "bold"), Text(value, "yellow" if name == "warning" else ""))
    console.print(table)


def before_lines(args: ScriptArguments, training: Any, task: Task) -> Iterator[Line]:
    """Yield what the page says, line by line."""
    facts = task.facts
    sets = _sets(task)
    for split, data in sets.items():
        source = facts.sources.get(split, "").replace(f" of {facts.sources.get('train')}", "")
        yield f"{split} rows", f"{len(data):,}" + (f"  {source}" if source else "")
    if facts.columns:
        yield "columns", facts.columns
    if facts.problem:
        yield "labels" if task.has_classes else "rows", facts.problem
    if "train" in sets and task.has_classes:
        yield from _classes(task, sets)
    for split, found in facts.lengths.items():
        cut = f"{found.cut:,} ({found.cut / found.count:.1%}) are cut at --max_length {found.limit}"
        none = f"none is cut at --max_length {found.limit}"
        yield f"{split} lengths", f"median {found.median}, longest {found.longest} tokens; {cut if found.cut else none}"
    for text, label in facts.examples:
        yield "example", one_line(text, 90) + (f"  ->  {one_line(label, 90)}" if label else "")
    yield from (("note", note) for note in facts.notes)
    if training.do_train and facts.goes_on:
        yield "goes on", facts.goes_on
    if training.do_train and task.train is not None:
        yield from _run(args, training, task)
    yield from (("warning", warning) for warning in facts.warnings)


def _sets(task: Task) -> dict[str, Any]:
    sets = {} if task.train is None else {"train": task.train}
    for split, several in (("validation", task.evaluation), ("test", task.test)):
        for name, part in several.items():
            sets[f"{split} {name}".strip()] = part.data
    return sets


def labels_of(data: Any) -> list[Any] | None:
    """Return the labels of a set as the model sees them, None if it has none."""
    if isinstance(data, Subset):
        labels = labels_of(data.dataset)
        return None if labels is None else [labels[row] for row in data.indices]
    if hasattr(data, "column_names"):
        return list(data["labels"]) if "labels" in data.column_names else None
    return getattr(data, "labels", None)


def _classes(task: Task, sets: dict[str, Any]) -> Iterator[Line]:
    names = task.model.config.id2label
    counts = {split: _counts(labels_of(data) or []) for split, data in sets.items()}
    train = counts.pop("train")
    if train is None:
        numbers = labels_of(sets["train"]) or [0.0]
        yield "numbers", f"from {min(numbers):g} to {max(numbers):g}, on average {sum(numbers) / len(numbers):g}"
        return
    order = sorted(names, key=lambda number: -train[number])
    shown = order if len(order) <= _CLASSES else [*order[: _CLASSES - 2], *order[-2:]]
    largest = max(train.values(), default=1)
    for place, number in enumerate(shown):
        if len(order) > _CLASSES and place == _CLASSES - 2:
            smallest, most = train[order[-3]], train[order[place]]
            yield "", f"... {len(order) - _CLASSES:,} more classes, of {smallest:,} to {most:,} examples ..."
        bar = "█" * max(round(_BAR * train[number] / largest), train[number] > 0)
        others = ", ".join(f"{split} {found[number]:,}" for split, found in counts.items() if found)
        yield one_line(names[number], 30), f"{bar} {train[number]:,}" + (f"  ({others})" if others else "")


def _counts(labels: Sequence[Any]) -> Counter[int] | None:
    """Return how often each class is there, None for numbers."""
    if labels and isinstance(labels[0], float):
        return None
    first = next((row for row in labels if row), None)
    if isinstance(first, list) and isinstance(first[0], int):  # a tag for each piece, -100 for none
        return Counter(tag for row in labels for tag in row if tag != -100)
    if isinstance(first, list):
        return Counter(place for row in labels for place, there in enumerate(row) if there)
    return Counter(labels)


def _run(args: ScriptArguments, training: Any, task: Task) -> Iterator[Line]:
    precision = "bf16" if training.bf16 else "fp16" if training.fp16 else args.dtype
    processes = f", {training.world_size} processes" if training.world_size > 1 else ""
    yield "device", f"{training.device.type}, {precision}{processes}"
    steps, of_epoch = count_steps(training, len(task.train))
    accumulated = training.gradient_accumulation_steps
    batch = training.train_batch_size * training.world_size * accumulated
    micro = f" in {accumulated} parts" if accumulated > 1 else ""
    epochs = steps / of_epoch
    yield "steps", f"{steps:,} of {batch} rows{micro}: {epochs:.3g} epochs of {of_epoch:,}"
    yield "method", describe_method(training)
    if args.average_weights is not None:
        yield "kept", f"the mean of the weights after {args.average_weights:.0%} of the run"
    if args.compare:
        yield "comparison", "plain training runs first, with the same seed and data"


def count_steps(training: Any, rows: int) -> tuple[int, int]:
    """Return how many steps the optimizer will take, and how many of them are an epoch, as Trainer counts them."""
    batch = training.train_batch_size * training.world_size
    batches = rows // batch if training.dataloader_drop_last else math.ceil(rows / batch)
    of_epoch = max(math.ceil(batches / training.gradient_accumulation_steps), 1)
    if training.max_steps > 0:
        return training.max_steps, of_epoch
    return math.ceil(training.num_train_epochs * of_epoch), of_epoch


def describe_method(training: Any) -> str:
    """Return the SAM setting in words, and what it costs."""
    name = training.sam_variant
    if name == "none":
        return "plain training, one pass a step"
    text = f"{name.upper()}, rho {training.rho}"
    if training.sam_scope != "batch":
        text += f", scope {training.sam_scope}"
    if VARIANTS[name].passes != "two":
        return f"{text}: one pass a step, about the time of plain training"
    sometimes = training.sam_every > 1 or training.sam_stop < 1 or training.sam_start not in (None, 0)
    cost = 1 + training.ascent_fraction
    where = " where it perturbs" if sometimes or training.sam_gate != "always" else ""
    return f"{text}: two passes a step{where}, about {cost:g} times the time of plain training"
