# SPDX-License-Identifier: Apache-2.0
"""The number of terms that the loss of a batch is the mean of.

Only who knows it can put the losses of batches together. Some count rows, others tokens that have a label, pixels that
are not 255, or the sum of the labels' class weights. The answer is read off the loss functions of torch that are
called, or guessed from the labels, and counts only if it puts the losses and gradients of two parts of a batch together
to those of the whole.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hf_sam.sharpness.losses import BatchLoss

IGNORED = -100
"""The label that models of transformers leave out of the loss."""
UNITS = ("terms", "batch")
OF_CLASSES = (F.cross_entropy, F.nll_loss)
OF_ELEMENTS = (
    F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.huber_loss, F.kl_div, F.l1_loss, F.mse_loss,
    F.smooth_l1_loss,
)  # fmt: skip
CLOSE = {torch.float64: 1e-6, torch.float32: 2e-3}
"""How far apart gradients may be by rounding, relative to the largest; losses a tenth of that."""
NO_MEAN = (
    "The loss of {rows} examples is no mean over terms of theirs that could be counted, so that it cannot be put "
    "together from batches. Give `SharpnessAnalyzer(batch_size=...)` >= {all} for one batch, `loss=...` a function "
    "(model, batch) -> (mean loss, number of terms), or `unit='batch'` for the mean of the batches' losses, which "
    "depends on their size."
)


class NoMean(ValueError):
    """The loss cannot be put together from those of batches.

    Args:
        rows: examples of which it was found.
        all_rows: how many there are.
    """

    def __init__(self, rows: int, all_rows: int) -> None:
        super().__init__(NO_MEAN.format(rows=rows, all=all_rows))
        self.rows = rows


Counts = dict[str, float]
"""Numbers of terms of a batch, by how they were counted; the likeliest first."""


class Terms:
    """The loss of a batch with the number of its terms.

    Args:
        batch_loss: of a batch; a number of terms that it returns itself is checked, too.
        unit: "terms"; or "batch", where each row counts the same and nothing is checked.
        ignored: labels that are left out of the loss.

    Attributes:
        counted: how terms are counted; None until it has been found out.
    """

    def __init__(self, batch_loss: BatchLoss, unit: str = "terms", ignored: Iterable[int] = (IGNORED,)) -> None:
        self.batch_loss, self.unit, self.ignored = batch_loss, unit, set(ignored)
        self.counted: str | None = "rows of each batch" if unit == "batch" else None
        self._known: dict[int, tuple[Any, float]] = {}

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[Tensor, float]:
        """Return the mean loss of a batch and the number of terms in it.

        Args:
            model: with whatever weights.
            batch: what the loss is of.
            given: the same object at each call with this batch, by which the number is remembered.
        """
        if id(given) in self._known:
            loss = self.batch_loss(model, batch)
            loss, terms = loss[0] if isinstance(loss, tuple) else loss, self._known[id(given)][1]
        else:
            loss, counts = self.counts(model, batch)
            terms = next(iter(counts.values())) if self.counted is None else counts.get(self.counted, 0.0)
            if self.counted is not None:
                self._known[id(given)] = (given, terms)  # which keeps the id from being another's
        if self.counted == SUM:
            loss = loss / terms  # so that all batches add up to their number of rows times the mean
        if terms == 0:  # nothing to learn from: the mean of nothing is no number
            return loss.nan_to_num(0.0) * 0, 0.0
        return loss, float(terms)

    def counts(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Counts]:
        """Return the loss of a batch and all numbers of terms that it may have."""
        watch = _Watch()
        with watch:
            loss = self.batch_loss(model, batch)
        rows = float(rows_in(batch))
        if self.unit == "batch":
            return loss[0] if isinstance(loss, tuple) else loss, {"rows of each batch": rows}
        if isinstance(loss, tuple):
            return loss[0], {"as `loss` says": float(loss[1])}
        return loss, {**watch.counts, **self._of_labels(batch), "rows": rows, SUM: rows}

    def choose(self, parts: Sequence[Counts], losses: Sequence[float], grads: Sequence[Tensor]) -> bool:
        """Find out how terms are counted.

        Args:
            parts: numbers of terms of a batch's first part, of its second part, and of the whole.
            losses: theirs.
            grads: theirs.

        Returns:
            Whether one count puts the parts together.
        """
        if not math.isfinite(losses[2]):  # there is nothing to compare; the sum over all batches will tell
            self.counted = next(iter(parts[2]))
            return True
        for name, whole in parts[2].items():
            if all(name in counts for counts in parts) and whole > 0:
                shares = [1.0, 1.0] if name == SUM else [counts[name] / whole for counts in parts[:2]]
                if _agree(shares, losses, grads):
                    self.counted = name
                    return True
        return False

    def _of_labels(self, batch: Mapping[str, Any]) -> Counts:
        labels = batch.get("labels")
        if not isinstance(labels, Tensor) or labels.is_floating_point() or not labels.dim():
            return {}
        kept = torch.stack([labels != ignored for ignored in sorted(self.ignored)]).all(dim=0)
        found = {"labels": float(kept.sum())}
        if labels.dim() > 1:
            found["labels but each first one"] = float(kept[..., 1:].sum())
        return found


SUM = "none: a sum"


def ignored_labels(model: nn.Module, loss: Any) -> set[int]:
    """Return the labels that the model, its config or the loss say they leave out."""
    config = getattr(model, "config", None)
    names = (getattr(each, "ignore_index", None) for each in (*model.modules(), loss, getattr(loss, "criterion", None)))
    found = {IGNORED, getattr(config, "semantic_loss_ignore_index", None), *names}
    return {each for each in found if isinstance(each, int)}


class _Watch(TorchFunctionMode):
    """Notes the number of terms in each call of a loss function of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counts = {}
        self._calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, and count what it is the mean of if it is a loss."""
        del types
        kwargs = kwargs or {}
        if func in OF_CLASSES or func in OF_ELEMENTS:
            self._calls += 1
            call = f"{func.__name__} {self._calls}"
            given = inspect.signature(func).bind(*args, **kwargs).arguments
            for name, count in (_of_classes if func in OF_CLASSES else _of_elements)(given).items():
                self.counts[name.format(call)] = count
        return func(*args, **kwargs)


def _of_classes(given: Mapping[str, Any]) -> Counts:
    target, weight, ignored = given["target"], given.get("weight"), given.get("ignore_index", IGNORED)
    if target.is_floating_point():  # probabilities of the classes
        return {"targets of {}": target.numel() / target.shape[1 if target.dim() > 1 else 0]}
    kept = target[target != ignored]
    found = {} if weight is None else {"weights of the targets of {}": float(weight[kept].sum())}
    return {**found, "targets of {}": float(kept.numel())}


def _of_elements(given: Mapping[str, Any]) -> Counts:
    return {"elements of {}": float(given["target"].numel())}


def rows_in(batch: Mapping[str, Any]) -> int:
    """Return the number of examples in a batch."""
    rows = [len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim()]
    return rows[0] if rows else 1


def _agree(shares: Sequence[float], losses: Sequence[float], grads: Sequence[Tensor]) -> bool:
    """Return whether the parts, each times its share, add up to the whole, but for rounding."""
    close = CLOSE.get(grads[2].dtype, 2e-3)
    parts = [(share, loss, grad) for share, loss, grad in zip(shares, losses, grads, strict=False) if share]
    apart = losses[2] - sum(share * loss for share, loss, _ in parts)
    largest = max(abs(losses[2]), *(abs(share * loss) for share, loss, _ in parts))
    if not abs(apart) <= close / 10 * largest:
        return False
    rest, length = grads[2].clone(), float(grads[2].norm())
    for share, _, grad in parts:
        rest.sub_(grad, alpha=share)
        length = max(length, share * float(grad.norm()))
    return float(rest.norm()) <= close * length
