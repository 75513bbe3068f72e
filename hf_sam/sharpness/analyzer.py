# SPDX-License-Identifier: Apache-2.0
"""The analyzer, which measures how flat the loss of a model is around its weights."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from hf_sam._checks import check_count, check_number, checked_choice
from hf_sam.parameters.choose import chosen
from hf_sam.sharpness import rises, spectrum
from hf_sam.sharpness.bookkeeping import Found, measuring, over_groups, settings_of, summary_of
from hf_sam.sharpness.borrowed_model import BorrowedModel
from hf_sam.sharpness.examples import Collator, Examples
from hf_sam.sharpness.loss_function import LossFunction
from hf_sam.sharpness.losses import BatchLoss, TrainerLoss, batch_loss_of, objects_of
from hf_sam.sharpness.measurable import DTYPES, bare, check_measurable
from hf_sam.sharpness.module_groups import groups_of
from hf_sam.sharpness.results import Density, Eigenvalues, Estimate, Rise, name_of, rise_of, standard_error
from hf_sam.sharpness.terms import UNITS, Terms, ignored_labels


class SharpnessAnalyzer:
    """Measures the flatness of a model's loss on a data set, and leaves the model as it is.

    What is measured is the loss that training sees, without dropout: the mean over the examples' terms (rows, or tokens
    that have a label), so that no result depends on the batch size. Where there are several batches, that is checked
    once. The model is what it was afterwards, also after an error: weights, gradients, training mode, `requires_grad`,
    buffers, attributes, generators and other random streams, caches, hooks. Under `torch.distributed` every process
    calls the same methods and takes its share of the examples.

    What the numbers do not mean: flatness does not predict the accuracy of a fine-tuned BERT (Andriushchenko et al.
    2023); lambda_max is in units of the loss per squared weight and cannot be compared between models whose weights
    differ in scale; sharpness with another rho, norm or m is another quantity.

    The weights are copied when the analyzer is made: after training on, make a new one. Frozen ones are not.

    Args:
        model: a model that returns a loss for the examples, or any with `loss`.
        dataset: examples as the Trainer takes them; those with no label have no loss.
        data_collator: makes a batch of examples; transformers' default without one.
        batch_size: examples at a time, >= 1; for memory only.
        max_examples: at most so many, a seeded choice. They are kept in memory.
        parameters: which ones to move and differentiate by: "trainable", or a choice of `sam_parameters`: "norm",
            "no_norm", "last:k", "adapters", a regular expression. All of them trainable.
        dtype: "float32" or "float64", for weights stored in any dtype and without autocast; "as loaded" keeps both.
        seed: of the choice of examples and of everything random.
        loss: in place of the model's own: (model, batch) -> loss, or -> (mean loss, number of terms in the mean); or a
            module such as `nn.CrossEntropyLoss(weight=...)`, of the logits and the labels; or `TrainerLoss(trainer)`.
        graphs: batches whose graph stays in memory from one product with the Hessian to the next: over these a product
            costs two gradients instead of three. 0 saves memory, as many as there are batches a third of the time.
        unit: "terms"; or "batch" for the mean of the batches' losses, each by its rows, where a loss belongs to its
            batch (contrastive ones): another batch size is another quantity.

    Raises:
        ValueError: if an argument is out of range, or there is no example; by a measurement also if the loss cannot be
            put together from batches.
        RuntimeError: by a measurement, if the weights have changed since the analyzer was made.
        NotImplementedError: if the parameters are cut over processes, complex, on several devices or not in memory, or
            attention is flash attention; by a measurement also if the loss has no second derivative.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Iterable[Any],
        data_collator: Collator | None = None,
        batch_size: int = 32,
        max_examples: int = 512,
        parameters: str = "trainable",
        dtype: str | torch.dtype = "float32",
        seed: int = 0,
        loss: BatchLoss | nn.Module | None = None,
        graphs: int = 1,
        unit: str = "terms",
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_examples", max_examples)):
            check_count("SharpnessAnalyzer", name, value)
        check_count("SharpnessAnalyzer", "graphs", graphs, least=0)
        checked_choice("SharpnessAnalyzer(unit=...)", unit, UNITS)
        dtype = str(dtype).removeprefix("torch.")
        checked_choice("SharpnessAnalyzer(dtype=...)", dtype, tuple(DTYPES))
        model = bare(model)
        which = "all" if parameters == "trainable" else parameters
        picked = chosen(model, which, "SharpnessAnalyzer(parameters=...)")
        check_measurable(picked, dtype)
        self.seed = seed
        columns = loss.columns if isinstance(loss, TrainerLoss) else ()
        self.examples = Examples(model, dataset, data_collator, batch_size, max_examples, seed, columns)
        borrowed = BorrowedModel(model, picked, DTYPES[dtype], seed, others=objects_of(loss))
        terms = Terms(batch_loss_of(loss), unit, ignored_labels(model, loss))
        self.loss_function = LossFunction(borrowed, self.examples, terms, graphs)
        self.settings = settings_of(self.loss_function, parameters, dtype, seed)

    def loss(self) -> float:
        """Return L(w), the mean over the terms of all examples."""
        return self.loss_function.loss()

    def top_eigenvalues(
        self, k: int = 1, which: str = "LA", *, tol: float = 1e-3, vectors: bool = False, max_restarts: int = 100
    ) -> Eigenvalues:
        """Return k eigenvalues of the Hessian: by default the largest, lambda_max.

        Six to ten products with the Hessian for one, about 45 for five; each keeps a vector in memory, at most 20.

        Args:
            k: how many, >= 1.
            which: "LA" the largest, "SA" the smallest, "LM" the largest in magnitude.
            tol: residual to reach, relative to the largest; an eigenvalue's error is about the square.
            vectors: whether to return the eigenvectors.
            max_restarts: of the Lanczos iteration.

        Raises:
            ValueError: if an argument is out of range.
            RuntimeError: if the iteration does not converge.
        """
        check_number("top_eigenvalues", "tol", tol, least=0)
        return self._eigenvalues(self.loss_function, k, which, tol, vectors, max_restarts)

    def min_eigenvalue(self, *, tol: float = 1e-3, max_restarts: int = 100) -> Eigenvalues:
        """Return the smallest eigenvalue, which says how far the loss curves downwards. Takes longer."""
        return self.top_eigenvalues(1, "SA", tol=tol, max_restarts=max_restarts)

    def trace(self, products: int = 30) -> Estimate:
        """Return the Hessian's trace, the sum of its eigenvalues (Hutch++, Meyer et al. 2021).

        Args:
            products: with the Hessian, >= 6; a third of it vectors in memory, three times. 120 give about 1 %.
        """
        return self._trace(self.loss_function, products)

    def density(self, steps: int = 50, runs: int = 4) -> Density:
        """Return the spectrum by stochastic Lanczos quadrature (Ghorbani et al. 2019).

        Args:
            steps: of each run, and vectors in memory; fewer than 50 show negative curvature that is not there.
            runs: from different starts, >= 1.
        """
        check_count("density", "steps", steps)
        check_count("density", "runs", runs)
        with self._measuring(steps=steps, runs=runs) as how:
            nodes, weights = spectrum.density(self.loss_function, steps, runs, self.seed)
        return Density(nodes=nodes, weights=weights, **how)

    def sam_sharpness(self, rho: float = 0.05, adaptive: bool = False, m: int | None = None) -> Rise:
        """Return L(w + eps) - L(w) with the eps of SAM, one step along the gradient (Foret et al. 2021, eq. 2).

        To first order this is rho ||g||: a norm of the gradient more than a curvature. `worst_case` climbs further.

        Args:
            rho: radius, >= 0, in the units of the weights' Euclidean norm; of ||T^-1 eps|| where `adaptive`.
            adaptive: ASAM's eps (Kwon et al. 2021, eq. 8), with T = |w| + 0.01 on matrices and 1 on vectors.
            m: examples that share one eps (m-sharpness); all of them without it. Another m is another quantity.
        """
        check_number("sam_sharpness", "rho", rho, least=0)
        scale = rises.scales(self.loss_function, adaptive)
        measure = functools.partial(rises.sam_rise, rho=rho, scale=scale)
        return self._rise("sam_sharpness", measure, rho=rho, adaptive=adaptive, m=m)

    def worst_case(self, rho: float = 0.05, steps: int = 20, adaptive: bool = False, m: int | None = None) -> Rise:
        """Return the highest L(w + eps) - L(w) that projected gradient ascent finds with ||eps|| <= rho.

        Args:
            rho: as in `sam_sharpness`.
            steps: gradients, >= 1; the first point is SAM's.
            adaptive: as in `sam_sharpness`.
            m: as in `sam_sharpness`.
        """
        check_number("worst_case", "rho", rho, least=0)
        check_count("worst_case", "steps", steps)
        scale = rises.scales(self.loss_function, adaptive)
        measure = functools.partial(rises.worst_rise, rho=rho, steps=steps, scale=scale)
        return self._rise("worst_case", measure, rho=rho, adaptive=adaptive, m=m, steps=steps)

    def average_case(self, rho: float = 0.05, n: int = 32, adaptive: bool = False) -> Rise:
        """Return the mean of L(w + eps) - L(w) over random eps of norm rho, in pairs eps and -eps.

        In second order it is rho^2 trace(H) / (2 number of parameters).

        Args:
            rho: as in `sam_sharpness`.
            n: pairs, two losses each, >= 1.
            adaptive: noise in proportion to T, rho = ||T^-1 eps||.
        """
        check_number("average_case", "rho", rho, least=0)
        check_count("average_case", "n", n)
        scale = rises.scales(self.loss_function, adaptive)
        with self._measuring(rho=rho, adaptive=adaptive, n=n) as how:
            found, loss, norm = rises.average_rises(self.loss_function, rho, n, scale, self.seed)
        name = name_of("average", rho, adaptive, len(self.examples.rows))
        return rise_of(name, [(rise, loss, norm) for rise in found], [1 / n] * n, how)

    def per_module(self, patterns: Sequence[str], products: int = 30) -> dict[str, dict[str, Any]]:
        """Return lambda_max and trace of each module's own block of the Hessian, by the module's path.

        Args:
            patterns: paths, or parts of them; "encoder.layer.*" stands for each layer, "classifier" for the head.
            products: with the Hessian, for each trace.

        Raises:
            ValueError: if a pattern matches no parameter.
        """
        found: dict[str, dict[str, Any]] = {}
        for module, names in groups_of(self.loss_function.names, patterns).items():
            part = self.loss_function.restricted(names)
            eigenvalues = self._eigenvalues(part, 1, "LA", 1e-3, False, 100)
            found[module] = {"lambda_max": eigenvalues, "trace": self._trace(part, products)}
        return found

    def report(self, rho: float = 0.05, k: int = 5, products: int = 30, steps: int = 20) -> dict[str, Any]:
        """Return the usual numbers, of types that JSON can hold.

        Args:
            rho: of the rises of the loss.
            k: eigenvalues.
            products: with the Hessian, for the trace.
            steps: of the worst case.
        """
        return summary_of(self, rho, k, products, steps)

    def _measuring(self, of: LossFunction | None = None, **call: Any) -> AbstractContextManager[dict[str, Any]]:
        return measuring(of or self.loss_function, self.settings, **call)

    def _eigenvalues(self, of: LossFunction, k: int, which: str, tol: float, vectors: bool, most: int) -> Eigenvalues:
        with self._measuring(of, k=k, which=which, tol=tol) as how:
            values, rows, left = spectrum.eigenvalues(of, k, which, tol, self.seed, most)
        return Eigenvalues(values=values, residuals=left, vectors=rows if vectors else None, **how)

    def _trace(self, of: LossFunction, products: int) -> Estimate:
        with self._measuring(of, products=products) as how:
            draws = spectrum.trace(of, products, self.seed)
        return Estimate(value=statistics.mean(draws), standard_error=standard_error(draws), draws=len(draws), **how)

    def _rise(self, method: str, measure: Callable[[LossFunction], Found], *, m: int | None, **call: Any) -> Rise:
        if m is not None:
            check_count(method, "m", m)
        with self._measuring(m=m, **call) as how:
            found, shares = over_groups(self.loss_function, m, measure)
        name = name_of(method.partition("_")[0], call["rho"], call["adaptive"], m or len(self.examples.rows))
        return rise_of(name, found, shares, how)
