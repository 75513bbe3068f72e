# SPDX-License-Identifier: Apache-2.0
"""The loss, its gradient and products with its Hessian, at the weights and near them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_sam.sharpness.borrowed_model import BorrowedModel
from hf_sam.sharpness.examples import Batch, Examples
from hf_sam.sharpness.second_derivative import check_custom_functions, second_derivative
from hf_sam.sharpness.terms import SUM, NoMean, Terms, rows_in
from hf_sam.step.replay import devices_of

Curve = tuple[Sequence[Tensor], float]
"""The gradient of a batch with its graph, and the number of terms."""


@dataclass
class Counts:
    """What was computed, each over all examples: values of the loss, gradients, products with the Hessian."""

    evaluations: float = 0
    gradients: float = 0
    products: float = 0


class LossFunction:
    """The mean loss L(w) over the terms of all examples: of all batches, on all processes.

    Args:
        borrowed: the model, with copies of its parameters.
        examples: what the loss is over.
        terms: the loss of a batch and the number of terms in it.
        graphs: number of batches whose graph of the gradient stays in memory inside `graphs_kept`.
    """

    def __init__(self, borrowed: BorrowedModel, examples: Examples, terms: Terms, graphs: int = 0) -> None:
        self.borrowed, self.examples, self.terms = borrowed, examples, terms
        self.names, self.parameters = borrowed.names, borrowed.parameters
        self.size = sum(p.numel() for p in self.parameters)
        self.device = devices_of(self.parameters)[0]
        self.dtype = torch.promote_types(self.parameters[0].dtype, torch.float32)
        self.counts = Counts()
        self.rank, self.processes = _place()
        self._most_graphs = graphs
        self._twice: list[bool] = []  # shared by all parts of this loss
        self._graphs: dict[int, Curve] | None = None

    def restricted(self, names: Sequence[str]) -> LossFunction:
        """Return the loss as a function of these parameters alone, with counts of its own."""
        part = LossFunction.__new__(LossFunction)
        part.__dict__.update(self.__dict__)
        part.names = [name for name in self.names if name in set(names)]
        part.parameters = [p for name, p in zip(self.names, self.parameters, strict=True) if name in set(names)]
        part.size = sum(p.numel() for p in part.parameters)
        part.counts, part._graphs = Counts(), None
        return part

    def on(self, examples: Examples) -> LossFunction:
        """Return the loss on other examples, all of them for this process, with counts of its own."""
        part = LossFunction.__new__(LossFunction)
        part.__dict__.update(self.__dict__)
        part.examples, part.counts, part._graphs = examples, Counts(), None
        part.rank, part.processes = 0, 1
        return part

    # ------------------------------------------------------------------------------------------------------------------
    # Over all examples
    # ------------------------------------------------------------------------------------------------------------------
    def loss(self) -> float:
        """Return L(w)."""
        self.counts.evaluations += 1
        with self.borrowed.with_copies() as model, torch.no_grad():
            pairs = [self._loss_of(model, batch) for batch in self._mine(model)]
        return self._mean(sum(float(loss) * n for loss, n in pairs), sum(n for _, n in pairs))[0]

    def gradient(self) -> tuple[float, Tensor]:
        """Return L(w) and its gradient, a vector of `size`."""
        self.counts.gradients += 1
        total, terms, loss = torch.zeros(self.size, dtype=self.dtype, device=self.device), 0.0, 0.0
        with self.borrowed.with_copies() as model:
            for batch in self._mine(model):
                value, n = self._loss_of(model, batch)
                grads = self._first(value)
                self._add(total, grads, n)
                loss, terms = loss + float(value.detach()) * n, terms + n
        mean, whole = self._mean(loss, terms)
        return mean, self._summed(total) / whole

    def products(self, vectors: Tensor) -> Tensor:
        """Return H v for each row v of `vectors`, (k, size): the Hessian at w times it.

        The gradient is differentiated once more (reverse over reverse); its graph serves all k rows.
        """
        self.counts.products += len(vectors)
        total, terms = torch.zeros_like(vectors), 0.0
        rows = [self.split(v) for v in vectors]
        with self.borrowed.with_copies() as model:
            self._check_twice(model)
            for number, batch in enumerate(self._mine(model)):
                grads, n = self._curve(model, number, batch)
                kept = number in (self._graphs or {})
                for i, v in enumerate(rows):
                    self._add(total[i], self._second(grads, v, kept or i + 1 < len(rows)), n)
                terms += n
                del grads
        return self._summed(total) / self._mean(0.0, terms)[1]

    @contextmanager
    def graphs_kept(self) -> Iterator[None]:
        """Keep the graphs of the first batches from product to product, for as long as the weights stay.

        A product then costs two gradients over these instead of three, and their memory.
        """
        self._graphs = {}
        try:
            yield
        finally:
            self._graphs = None

    def _curve(self, model: nn.Module, number: int, batch: Batch) -> Curve:
        """Return the gradient of a batch, which can be differentiated, and its number of terms."""
        if self._graphs and number in self._graphs:
            return self._graphs[number]
        value, n = self._loss_of(model, batch)
        with second_derivative():
            curve = self._first(value, create_graph=True), n
        if self._graphs is not None and number < self._most_graphs:
            self._graphs[number] = curve
        return curve

    # ------------------------------------------------------------------------------------------------------------------
    # Near w
    # ------------------------------------------------------------------------------------------------------------------
    @contextmanager
    def moved(self, offset: Tensor) -> Iterator[None]:
        """Move the copies of the weights to w + offset, and back to the same bits at the end."""
        kept = [p.detach().clone() for p in self.parameters]
        self._forget_graphs()
        try:
            with torch.no_grad():
                for p, e in zip(self.parameters, self.split(offset), strict=True):
                    p.add_(e)
            yield
        finally:
            with torch.no_grad():
                for p, w in zip(self.parameters, kept, strict=True):
                    p.copy_(w)
            self._forget_graphs()

    def _forget_graphs(self) -> None:
        if self._graphs:  # they belong to other weights
            self._graphs.clear()

    def split(self, vector: Tensor) -> list[Tensor]:
        """Return the pieces of a vector of `size`, each in its parameter's shape and dtype."""
        pieces = torch.split(vector, [p.numel() for p in self.parameters])
        return [piece.view(p.shape).to(p.dtype) for piece, p in zip(pieces, self.parameters, strict=True)]

    @torch.no_grad()
    def _add(self, total: Tensor, pieces: Sequence[Tensor], factor: float) -> None:
        """Add the pieces of a vector, times a factor, to the vector `total`."""
        places = torch.split(total, [p.numel() for p in self.parameters])
        flat_pieces = [piece.reshape(-1) for piece in pieces]
        torch._foreach_add_(list(places), flat_pieces, alpha=factor)

    def weights(self) -> Tensor:
        """Return w, a vector of `size`."""
        return flat([p.detach() for p in self.parameters]).to(self.dtype)

    def _mine(self, model: nn.Module) -> list[Batch]:
        """Return this process's batches; where there are several, find out first how their losses go together."""
        batches = self.examples.batches()
        if len(batches) > 1 and self.terms.counted is None:
            self._count_terms(model)
        return batches[self.rank :: self.processes]

    def _check_twice(self, model: nn.Module) -> None:
        """Find out once whether the loss can be differentiated twice where autograd would not say that it cannot."""
        if not self._twice:
            check_custom_functions(self, model, self.examples.batches()[0])
            self._twice.append(True)

    @torch.enable_grad()
    def _count_terms(self, model: nn.Module) -> None:
        parts, counts, losses, grads = self.examples.parts(), [], [], []
        for batch in parts:
            loss, count = self.terms.counts(model, self.borrowed.cast(batch))
            counts.append(count)
            losses.append(float(loss.detach()))
            grads.append(flat(self._first(loss)).to(self.dtype))
        if not self.terms.choose(counts, losses, grads):
            raise NoMean(rows_in(parts[2]), len(self.examples.rows))

    def _loss_of(self, model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
        loss, terms = self.terms(model, self.borrowed.cast(batch), batch)
        return (loss * len(self.examples.rows) if self.terms.counted == SUM else loss), terms

    def _first(self, loss: Tensor, create_graph: bool = False) -> Sequence[Tensor]:
        if not loss.requires_grad:
            raise ValueError("The loss does not depend on the parameters that are to be measured: it has no gradient.")
        return torch.autograd.grad(loss, self.parameters, create_graph=create_graph, materialize_grads=True)

    def _second(self, grads: Sequence[Tensor], v: list[Tensor], keep: bool) -> Sequence[Tensor]:
        curved = [(g, each) for g, each in zip(grads, v, strict=True) if g.requires_grad]
        if not curved:
            return [torch.zeros_like(p) for p in self.parameters]
        outputs, weights = zip(*curved, strict=True)
        with second_derivative():
            return torch.autograd.grad(outputs, self.parameters, weights, retain_graph=keep, materialize_grads=True)

    def _summed(self, tensor: Tensor) -> Tensor:
        """Return the sum over processes; the tensor itself where there is one process."""
        if self.processes > 1:
            device = tensor.device
            tensor = tensor.to(self.device)
            torch.distributed.all_reduce(tensor)
            tensor = tensor.to(device)
        return tensor

    def _mean(self, loss: float, terms: float) -> tuple[float, float]:
        """Return the loss per term and the number of terms, over all processes."""
        loss, terms = self._summed(torch.tensor([loss, terms], dtype=torch.float64)).tolist()
        if terms == 0:
            raise ValueError("None of the examples has a label that counts: all are -100, or left out otherwise.")
        return loss / terms, terms


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return the tensors one after the other, in one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def _place() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
