# SPDX-License-Identifier: Apache-2.0
"""The analyzer, which measures what is left of a model after rounding, pruning, merging, and on other inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from hf_sam._checks import check_count, check_number, checked_choice
from hf_sam.robustness.calibration import fitted_temperature
from hf_sam.robustness.corruptions import SEVERITIES, corruption, corruptions_for
from hf_sam.robustness.merging import Checkpoint, merge_weights, tensors_of
from hf_sam.robustness.metrics import ComputeMetrics
from hf_sam.robustness.plan import Progress, planned
from hf_sam.robustness.predictions import KINDS, kind_of, predicted
from hf_sam.robustness.pruning import SCOPES, prune_weights
from hf_sam.robustness.quantisation import quantise_dynamically, round_weights
from hf_sam.robustness.results import BASE, Condition, Measurement, Report
from hf_sam.robustness.scoring import measurement_of
from hf_sam.sharpness.borrowed_model import BorrowedModel
from hf_sam.sharpness.examples import Collator, Examples
from hf_sam.sharpness.measurable import DTYPES, bare

OWNER = "RobustnessAnalyzer"
Change = Callable[[nn.Module], int]
"""Changes a model that holds copies of its weights; returns how many numbers it changed."""


class RobustnessAnalyzer:
    """Measures a classifier, a regressor or a causal language model as it is and under changes; leaves it as it is.

    Each method returns the scores under one condition, `report` those under all that are asked for. The examples and
    what is random in the conditions are the same for every model, so that models can be compared example by example.

    The model is what it was afterwards, also after an error: weights, buffers, training mode, attributes, hooks, random
    streams, caches. It is measured in evaluation mode, through a copy of its weights, which is made with the analyzer:
    after training on, make a new one.

    What the numbers do not mean: rounding is simulated in floating point, no kernel is run and nothing is said about
    speed; corruptions are applied to what the model is given, after resizing and cropping; scores of one training run
    say nothing about the next one: give `compare` several seeds.

    Args:
        model: with logits among what it returns.
        dataset: examples with labels, as the Trainer takes them.
        data_collator: makes a batch of examples; transformers' default without one.
        batch_size: examples at a time, >= 1. For memory only, but for int8 with `dynamic`, whose inputs are rounded by
            the batch, as torch does it.
        max_examples: at most so many, a seeded choice. They are kept in memory.
        calibration: examples that a temperature is fitted on, such as a part of the validation set; they must not be
            among those that are measured. Without them there are no scores after temperature scaling.
        processing_class: the tokenizer or image processor, for corruptions.
        compute_metrics: the Trainer's, for scores of your own.
        kind: of "classification", "multilabel", "regression", "causal_lm"; read off the model without it.
        dtype: "float32" or "float64", for weights stored in any dtype; "as loaded" keeps it.
        seed: of the choice of examples and of everything random.

    Raises:
        ValueError: if an argument is out of range, or there is no example; by a measurement also if there are no
            labels, or they do not fit the answers.
        RuntimeError: by a measurement, if the weights have changed since the analyzer was made.
        NotImplementedError: if the model is another kind, or its parameters are cut over processes, on several devices
            or not in memory, or its attention is flash attention.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Iterable[Any],
        data_collator: Collator | None = None,
        batch_size: int = 32,
        max_examples: int = 2000,
        calibration: Iterable[Any] | None = None,
        processing_class: Any = None,
        compute_metrics: ComputeMetrics | None = None,
        kind: str | None = None,
        dtype: str | torch.dtype = "float32",
        seed: int = 0,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_examples", max_examples)):
            check_count(OWNER, name, value)
        dtype = checked_choice(f"{OWNER}(dtype=...)", str(dtype).removeprefix("torch."), tuple(DTYPES))
        if calibration is not None and calibration is dataset:
            raise ValueError(
                f"`{OWNER}(calibration=...)` must be other examples than `dataset`: a temperature fitted on what is "
                "measured makes it look calibrated."
            )
        self.model = bare(model, OWNER)
        self.kind = kind_of(self.model) if kind is None else checked_choice(f"{OWNER}(kind=...)", kind, KINDS)
        if calibration is not None and self.kind not in ("classification", "multilabel"):
            raise ValueError(f"`{OWNER}(calibration=...)` is for classifiers, and the model's kind is {self.kind}.")
        self.processing_class, self.compute_metrics, self.seed = processing_class, compute_metrics, seed

        def examples_of(rows: Iterable[Any]) -> Examples:
            return Examples(self.model, rows, data_collator, batch_size, max_examples, seed, owner=OWNER)

        self._examples_of = examples_of
        self.examples = examples_of(dataset)
        self._held_out = None if calibration is None else examples_of(calibration)
        # Frozen weights too: they are rounded and pruned as well.
        picked = {n: p for n, p in self.model.named_parameters() if type(p) is nn.Parameter and p.is_floating_point()}
        self._borrowed = BorrowedModel(self.model, picked, DTYPES[dtype], seed)
        self._temperature: float | None = None
        self.settings: dict[str, Any] = {
            "kind": self.kind,
            "number_of_parameters": sum(p.numel() for p in self.model.parameters()),
            "examples": len(self.examples.rows),
            "batch_size": batch_size,
            "calibration_examples": len(self._held_out.rows) if self._held_out else 0,
            "dtype": dtype,
            "seed": seed,
        }

    def as_trained(self) -> Measurement:
        """Return the scores of the model as it is."""
        return self._measured(Condition(BASE, BASE, BASE))

    def quantised(self, bits: int = 8, *, dynamic: bool = False, group: int | None = None) -> Measurement:
        """Return the scores after rounding to integers, with no training after it.

        Args:
            bits: 2 to 8, for the weights of linear layers and convolutions, one step for each output.
            dynamic: int8 as `torch.ao.quantization.quantize_dynamic` computes it: one step for the whole weight of a
                linear layer, and its inputs rounded too. Loses more than weights alone.
            group: inputs of an output that share a step, such as 128; all of them without it.
        """
        check_count("quantised", "bits", bits, least=2, most=8)
        if dynamic:
            if bits != 8 or group is not None:
                raise ValueError(
                    "`quantised(dynamic=True)` is int8 with one step a layer: leave `bits` and `group` out."
                )
            return self._measured(Condition("int8 dynamic", "quantisation", "dynamic", 8), quantise_dynamically)
        if group is not None:
            check_count("quantised", "group", group)
        kind = "weights" if group is None else f"weights, groups of {group}"
        condition = Condition(f"int{bits} {kind}", "quantisation", kind, bits)
        return self._measured(condition, lambda model: round_weights(model, bits, group))

    def pruned(self, share: float, *, scope: str = "global") -> Measurement:
        """Return the scores after the smallest weights are set to zero, with no training after it.

        Args:
            share: of the weights of linear layers and convolutions, 0 to below 1.
            scope: "global" for the smallest ones of the model, "layer" for the same share of each layer.
        """
        check_number("pruned", "share", share, least=0, below=1)
        checked_choice("pruned(scope=...)", scope, SCOPES)
        kind = "pruned" if scope == "global" else "pruned layer by layer"
        condition = Condition(f"{kind}, {100 * share:g} %", "pruning", kind, share)
        return self._measured(condition, lambda model: prune_weights(model, share, scope))

    def corrupted(self, name: str, severity: int = 3) -> Measurement:
        """Return the scores on corrupted inputs.

        Args:
            name: for images "noise", "blur", "contrast", "jpeg"; for texts "typos", "dropped words", "capitals".
            severity: 1 to 5.
        """
        choices = corruptions_for(self.examples.rows[0])
        if not choices:
            raise NotImplementedError("`corrupted(name)` needs examples with pixel_values or input_ids.")
        checked_choice("corrupted(name)", name, choices)
        check_count("corrupted", "severity", severity, most=len(SEVERITIES))
        change = corruption(name, severity, self.examples.rows, self.processing_class, self.seed)
        others = self.examples.with_rows([change(row, i) for i, row in enumerate(self.examples.rows)])
        return self._measured(Condition(f"{name}, severity {severity}", "corruption", name, severity), on=others)

    def on(self, dataset: Iterable[Any], name: str) -> Measurement:
        """Return the scores on other examples, such as those of another domain.

        Args:
            dataset: with the same labels.
            name: for the report.
        """
        return self._measured(Condition(name, "shift", name), on=self._examples_of(dataset))

    def merged(
        self, others: Sequence[Checkpoint], *, origin: Checkpoint | None = None, alpha: float | None = None
    ) -> Measurement:
        """Return the scores after merging the weights with those of other checkpoints of the same origin.

        Args:
            others: models, folders, or tensors by name. What they have no tensor for, in the same shape, stays.
            origin: the checkpoint that all were trained from.
            alpha: for task arithmetic, origin + alpha * (sum of all distances from it); the mean of all without it.
        """
        if alpha is not None:
            check_number("merged", "alpha", alpha)
        if not others or (alpha is None) != (origin is None):
            rule = "another checkpoint" if not others else "both `origin` and `alpha`, or none for the mean"
            raise ValueError(f"`merged(others, origin=..., alpha=...)` needs {rule}.")
        tensors = [tensors_of(each, self.model, "merged(others)") for each in others]
        start = None if origin is None else tensors_of(origin, self.model, "merged(origin=...)")
        kind, name = ("average", "merged, average") if alpha is None else ("task", f"merged, task arithmetic {alpha:g}")
        condition = Condition(name, "merging", kind, alpha)
        return self._measured(condition, lambda model: merge_weights(model, tensors, start, alpha))

    def report(self, *, progress: Progress = iter, **conditions: Any) -> Report:
        """Return the scores under all conditions that are asked for; without arguments the usual ones.

        Args:
            progress: wraps the iterable of the loop over conditions, as `tqdm.tqdm` does.
            conditions: arguments of `hf_sam.robustness.plan.planned`: `bits`, `group`, `dynamic`, `shares`,
                `corruptions`, `severities`, `shifted`, `others`, `origin`, `alphas`.
        """
        found: dict[str, Measurement] = {}
        for measure in progress(planned(self, **conditions)):
            each = measure()
            if each.condition.name in found:
                raise ValueError(f"`report(...)` asks for {each.condition.name!r} twice: give each its own name.")
            found[each.condition.name] = each
        return Report(measurements=found, settings=dict(self.settings))

    def _measured(self, condition: Condition, change: Change | None = None, on: Examples | None = None) -> Measurement:
        start = time.perf_counter()
        with self._borrowed.with_copies() as model:
            count = None if change is None else change(model)
            found = predicted(model, self._borrowed, on or self.examples, self.kind)
            temperature = self._fitted(model, changed=change is not None)
        # A matrix that a head and an embedding share is one parameter, and rounded in the head alone.
        changed = None if count is None else min(1.0, count / self.settings["number_of_parameters"])
        how = {"changed": changed, "settings": dict(self.settings), "seconds": time.perf_counter() - start}
        return measurement_of(condition, found, temperature, self.compute_metrics, how)

    def _fitted(self, model: nn.Module, *, changed: bool) -> float | None:
        """Return the temperature of a model with these weights; that of the model as it is, is fitted once."""
        if self._held_out is None or (not changed and self._temperature is not None):
            return self._temperature
        answers = predicted(model, self._borrowed, self._held_out, self.kind)
        temperature = fitted_temperature(*answers.decisions())
        if not changed:
            self._temperature = temperature
        return temperature
