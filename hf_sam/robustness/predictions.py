# SPDX-License-Identifier: Apache-2.0
"""The answers of a model and what they should have been: logits and labels, in the order of the examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_sam.sharpness.borrowed_model import BorrowedModel
from hf_sam.sharpness.examples import Examples, base_of

Array = NDArray[Any]
KINDS = ("classification", "multilabel", "regression", "causal_lm")
OTHERS = ("ConditionalGeneration", "QuestionAnswering", "MaskedLM", "Detection", "Seq2Seq", "PreTraining")
"""Parts of the names of classes that answer something else."""
IGNORED = -100
"""The label that says that nothing is asked there."""


@dataclass(frozen=True)
class Predictions:
    """The answers of a model to all examples.

    Attributes:
        kind: of "classification", "multilabel", "regression", "causal_lm".
        logits: (rows, classes), or (rows,) for regression; for a language model the loss of each token, (rows,).
        labels: (rows,), or (rows, classes) for several labels; for a language model the tokens that were to come.
        example: the number of the example that each row comes from: tokens of one text belong together.
        examples: how many.
    """

    kind: str
    logits: Array
    labels: Array
    example: Array
    examples: int

    def where(self, kept: Array) -> Predictions:
        """Return the answers to some of the examples.

        Args:
            kept: a Boolean for each example.
        """
        rows = kept[self.example]
        return replace(self, logits=self.logits[rows], labels=self.labels[rows], example=self.example[rows])

    def decisions(self) -> tuple[Array, Array]:
        """Return logits and labels of a classifier with one label a row: each of several labels is a yes or no."""
        if self.kind != "multilabel":
            return self.logits, self.labels
        yes = self.logits.reshape(-1)
        return np.stack([np.zeros_like(yes), yes], axis=1), self.labels.reshape(-1).astype(np.int64)


def kind_of(model: nn.Module) -> str:
    """Return what a model of transformers answers, by its class and config.

    Raises:
        NotImplementedError: if that is something else than a class, several labels, a number or the next token.
    """
    inner = base_of(model)
    config, name = getattr(inner, "config", None), type(inner).__name__
    names = {each.__name__ for each in type(inner).__mro__}  # a user's subclass answers what its parent does
    if names & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()) or name.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal_lm"
    if any(word in each for each in names for word in OTHERS):
        raise NotImplementedError(
            f"`RobustnessAnalyzer(model, ...)` measures classifiers, regressors and causal language models, and {name} "
            "is none of them."
        )
    problem = getattr(config, "problem_type", None)
    if problem == "multi_label_classification":
        return "multilabel"
    if problem == "regression" or (problem is None and getattr(config, "num_labels", None) == 1):
        return "regression"
    return "classification"


@torch.no_grad()
def predicted(model: nn.Module, borrowed: BorrowedModel, examples: Examples, kind: str) -> Predictions:
    """Return the answers of a model, which holds the copies of its weights, to all examples.

    Raises:
        ValueError: if the examples have no labels, or the answers do not fit the kind.
    """
    order = examples.order()
    found: list[tuple[Array, Array, Array]] = []
    start = 0
    for batch in examples.batches():
        inputs, labels = _without_labels(borrowed.cast(batch))
        logits = _logits(model(**inputs))
        rows, wanted, place = _rows(logits, labels, kind)
        numbers = np.asarray(order[start : start + len(labels)])[place]
        found.append((rows, wanted, numbers))
        start += len(labels)
    logits_, labels_, example = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if not len(labels_):
        raise ValueError(f"`RobustnessAnalyzer(dataset=...)`: no example has a label other than {IGNORED}.")
    back = np.argsort(example, kind="stable")
    return Predictions(kind, logits_[back], labels_[back], example[back], start)


def _without_labels(batch: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
    for name in ("labels", "label", "label_ids"):
        if isinstance(batch.get(name), Tensor):
            return {key: value for key, value in batch.items() if key != name}, batch[name]
    raise ValueError(f"`RobustnessAnalyzer(dataset=...)` needs labels, and its batches hold {', '.join(batch)} only.")


def _logits(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple):
        logits = next((each for each in output if isinstance(each, Tensor) and each.dim() > 1), None)
    if not isinstance(logits, Tensor):
        raise ValueError(f"`RobustnessAnalyzer(model, ...)` needs logits, and the model returned {type(output)!r:.80}.")
    return logits


def _rows(logits: Tensor, labels: Tensor, kind: str) -> tuple[Array, Array, Array]:
    """Return a batch's logits and labels by row, and the place in the batch that each row comes from."""
    if kind == "causal_lm":
        return _next_tokens(logits, labels)
    logits, labels = logits.float() if logits.dtype.itemsize < 4 else logits, labels.cpu()
    place = torch.arange(len(labels))
    if kind == "regression":
        logits = logits.squeeze(-1) if logits.dim() > labels.dim() else logits
        if logits.shape != labels.shape or labels.dim() != 1:
            raise ValueError(_misfit(kind, logits, labels, "one number an example"))
        return logits.cpu().numpy(), labels.numpy(), place.numpy()
    if kind == "multilabel":
        if logits.shape != labels.shape:
            raise ValueError(_misfit(kind, logits, labels, "a zero or one for each label"))
        return logits.cpu().numpy(), labels.numpy(), place.numpy()
    if logits.dim() != labels.dim() + 1 or labels.is_floating_point() or logits.shape[:-1] != labels.shape:
        raise ValueError(_misfit(kind, logits, labels, "the number of a class for each row of logits"))
    place = place.view(-1, *[1] * (labels.dim() - 1)).expand_as(labels)
    kept = labels != IGNORED
    return logits.cpu()[kept].numpy(), labels[kept].numpy(), place[kept].numpy()


def _next_tokens(logits: Tensor, labels: Tensor) -> tuple[Array, Array, Array]:
    """Return the loss of each token given those before it."""
    if logits.dim() != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(_misfit("causal_lm", logits, labels, "a token for each place"))
    wanted = labels[:, 1:]
    kept = wanted != IGNORED
    places = torch.arange(len(labels), device=labels.device).unsqueeze(1).expand_as(wanted)
    losses = nn.functional.cross_entropy(logits[:, :-1][kept].float(), wanted[kept], reduction="none")
    return losses.double().cpu().numpy(), wanted[kept].cpu().numpy(), places[kept].cpu().numpy()


def _misfit(kind: str, logits: Tensor, labels: Tensor, rule: str) -> str:
    return (
        f"`RobustnessAnalyzer(kind={kind!r})` needs {rule}, got logits {tuple(logits.shape)} and labels "
        f"{tuple(labels.shape)} of {str(labels.dtype).removeprefix('torch.')}; kind=... is one of {', '.join(KINDS)}."
    )
