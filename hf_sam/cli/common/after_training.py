# SPDX-License-Identifier: Apache-2.0
"""Show what came out of a run, and where to look next."""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from hf_sam.cli.common.comparison import Comparison
from hf_sam.cli.common.confusion import confusion
from hf_sam.cli.common.errors import one_line
from hf_sam.cli.common.judged import Judged, judge
from hf_sam.cli.common.origins import Origin
from hf_sam.cli.common.per_class import show_per_class
from hf_sam.cli.common.summary import show
from hf_sam.cli.common.suspects import FILE, Suspects
from hf_sam.cli.tasks.base import Task

_EXAMPLES = 5
_TEXT = 60  # characters of an example


class LastOutputs:
    """Trainer's `compute_metrics`, which keeps the outputs of the last evaluation, a set each.

    Args:
        compute_metrics: The task's own.
        sets: How many sets an evaluation has.
    """

    def __init__(self, compute_metrics: Callable[[Any], dict[str, float]], sets: int) -> None:
        self.compute_metrics, self.outputs = compute_metrics, deque[Any](maxlen=max(sets, 1))

    def __call__(self, output: Any) -> dict[str, float]:
        """Return the metrics."""
        self.outputs.append(output)
        return self.compute_metrics(output)


@dataclass
class Ending:
    """What there is to show of a run, besides its numbers."""

    output: Path  # where everything is
    folder: Path  # where the model is that a user loads
    comparison: Comparison | None = None
    evaluated: dict[str, Any] = field(default_factory=dict)  # outputs of the last evaluation, by set
    suspects: Suspects | None = None
    pushed_to: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return what goes into all_results.json."""
        return {
            **(self.comparison.facts() if self.comparison else {}),
            **(self.suspects.facts() if self.suspects else {}),
        }

    def write(self) -> None:
        """Write what must not be pushed, once all has been pushed."""
        if self.suspects is not None:
            self.suspects.write(self.output)


@contextmanager
def keeping_outputs(trainer: Any, task: Task, ending: Ending) -> Iterator[None]:
    """Keep the outputs of the evaluation that runs meanwhile, so that its examples can be shown."""
    kept = LastOutputs(trainer.compute_metrics, len(task.evaluation))
    metrics, trainer.compute_metrics = trainer.compute_metrics, kept if trainer.compute_metrics else None
    try:
        yield
    finally:
        trainer.compute_metrics = metrics
    names = [f"validation {name}".strip() for name in task.evaluation]
    if len(kept.outputs) == len(names):
        ending.evaluated = dict(zip(names, kept.outputs, strict=True))


def show_after(task: Task, results: dict[str, Any], ending: Ending, *, console: Console | None = None) -> None:
    """Print the page."""
    console = console or Console()
    show(task, results, ending.folder, console=console)
    if ending.comparison is not None:
        ending.comparison.show(results, console)
    show_per_class(task.compute_metrics, console=console)
    names = task.model.config.id2label
    for name, output in ending.evaluated.items():
        judged = judge(output, names, task.separator)
        if judged is not None:
            _show_set(judged, task.origins.get(name), [names[number] for number in sorted(names)], console)
    console.print()
    for line in _where_next(results, ending):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _show_set(judged: Judged, origin: Origin | None, names: list[str], console: Console) -> None:
    table = confusion(judged, names, console.width)
    if table is not None:
        console.print(table)
    if origin is not None:
        console.print(_highest_losses(judged, origin))


def _highest_losses(judged: Judged, origin: Origin) -> Group:
    table = Table(box=None, pad_edge=False)
    heads = ["row", "loss", "given", "predicted", *([origin.kind] if origin.columns else [])]
    for head in heads:
        table.add_column(head, justify="right" if head in ("row", "loss") else "left")
    for place in judged.loss.argsort(kind="stable")[::-1][:_EXAMPLES].tolist():
        words = [one_line(text, 24) for text in (judged.given[place], judged.predicted[place])]
        text = [_shown(origin, place)] if origin.columns else []
        table.add_row(str(origin.rows[place]), f"{judged.loss[place]:.3g}", *map(Text, [*words, *text]))
    return Group(Text(f"\nhighest loss, rows of {origin.where} from 0", "italic"), table)


def _shown(origin: Origin, place: int) -> str:
    text = origin.text(place)
    if origin.kind == "file" and len(text) > _TEXT:
        return "..." + text[3 - _TEXT :]  # the name is at the end
    return one_line(text, _TEXT)


def _where_next(results: dict[str, Any], ending: Ending) -> list[str]:
    lines = []
    if ending.suspects is not None:
        count, total = len(ending.suspects.places), len(ending.suspects.judged.given)
        what = "by their error" if ending.suspects.judged.kind == "regression" else "that the model contradicts"
        text = f"{count:,} of {total:,} training labels {what}, the surest first: {ending.output / FILE}"
        recall, precision = results.get("suspects_recall"), results.get("suspects_precision")
        if recall is not None and precision is not None:
            text += f"\n  {precision:.0%} of them are labels that --label_noise flipped, {recall:.0%} of all it flipped"
        lines.append(text)
    if "train_runtime" not in results:
        return lines
    if ending.pushed_to is not None:
        return [*lines, f"On the Hub: {ending.pushed_to}"]
    leave = " ".join(f"--exclude {pattern!r}" for pattern in ("checkpoint-*", "_*", FILE))
    name = shlex.quote(f"YOUR_NAME/{ending.output.absolute().name}")
    return [*lines, f"Push it:\n  hf upload {name} {shlex.quote(str(ending.folder))} . {leave}"]
