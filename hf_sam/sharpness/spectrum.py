# SPDX-License-Identifier: Apache-2.0
"""Eigenvalues of the Hessian, their sum (the trace), and their density."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from hf_sam._checks import check_count, checked_choice
from hf_sam.sharpness.lanczos import KEPT, extreme, grow, started
from hf_sam.sharpness.loss_function import LossFunction

Array: TypeAlias = "np.ndarray[Any, Any]"
Measure = TypeVar("Measure", bound=Callable[..., Any])
WHICH = ("LA", "LM", "SA")
ROUGH = 0.1
"""Residual of the eigenvalue that serves as a measure, relative to it."""


def _keeping_graphs(measure: Measure) -> Measure:
    """Keep the graphs of the gradient for as long as `measure` runs, which must not move the weights."""

    @functools.wraps(measure)
    def kept(loss_function: LossFunction, *args: Any) -> Any:
        with loss_function.graphs_kept():
            return measure(loss_function, *args)

    return cast(Measure, kept)


@_keeping_graphs
def eigenvalues(
    loss_function: LossFunction, k: int, which: str, tol: float, seed: int, most: int
) -> tuple[list[float], Tensor, list[float]]:
    """Return k eigenvalues, the one asked for first, their vectors, (k, size), and ||H v - lambda v|| of each.

    The largest alone is found by Lanczos without restarts, which no method with products alone beats. ARPACK
    (`scipy.sparse.linalg.eigsh`) finds several, or the largest where twenty vectors are not enough. A matrix too small
    for ARPACK is written out.

    Args:
        loss_function: the loss.
        k: how many, 1 <= k <= size.
        which: "LA" the largest, "SA" the smallest, "LM" the largest in magnitude.
        tol: residual asked for, relative to the largest eigenvalue; the error of an eigenvalue is about its square.
        seed: of the first vector.
        most: restarts.

    Raises:
        ValueError: if k or `which` is out of range.
        RuntimeError: if it does not converge.
    """
    checked_choice("top_eigenvalues(which=...)", which, WHICH)
    check_count("top_eigenvalues", "k", k, most=loss_function.size)
    vectors = max(2 * k + 1, KEPT)
    if k == 1 and which != "SA":
        value, vector, residual, enough = extreme(loss_function, which, tol, seed)
        if enough:
            return [value], vector[None], [residual]
    if loss_function.size <= vectors + 1:
        values, columns = np.linalg.eigh(_written_out(loss_function))
    else:
        values, columns = _arpack(loss_function, k, which, vectors, tol, seed, most)
    key = {"LA": -values, "SA": values, "LM": -np.abs(values)}[which]
    order = np.argsort(key)[:k]
    rows = torch.as_tensor(np.ascontiguousarray(columns[:, order].T)).to(loss_function.device, loss_function.dtype)
    found: list[float] = values[order].tolist()
    return found, rows, _residuals(loss_function, found, rows)


def _residuals(loss_function: LossFunction, values: list[float], vectors: Tensor) -> list[float]:
    images = torch.cat([loss_function.products(v[None]) for v in vectors])
    scaled = torch.tensor(values, dtype=vectors.dtype, device=vectors.device)[:, None] * vectors
    lengths: list[float] = (images - scaled).norm(dim=1).tolist()
    return lengths


@_keeping_graphs
def trace(loss_function: LossFunction, products: int, seed: int) -> list[float]:
    """Return draws whose mean is the trace (Hutch++, Meyer et al. 2021, algorithm 1), from so many products.

    A third of the products find the directions that the Hessian stretches most, a third measure these exactly, and a
    third estimate the rest. Only the rest is uncertain, so the spread of the draws is that of the whole.

    Raises:
        ValueError: for fewer than 6 products.
    """
    check_count("trace", "products", products, least=6)
    third = min(products // 3, loss_function.size)
    draw = _signs(loss_function, seed)
    basis, _ = torch.linalg.qr(loss_function.products(draw(third)).T)
    inside = float((basis.T * loss_function.products(basis.T.contiguous())).sum())
    rest = draw(products - 2 * third)
    rest = rest - (rest @ basis) @ basis.T
    if third == loss_function.size:
        return [inside]
    return [inside + float(each) for each in (rest * loss_function.products(rest)).sum(dim=1)]


@_keeping_graphs
def density(
    loss_function: LossFunction, steps: int, runs: int, seed: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Return nodes and weights of `runs` runs of Lanczos, each with a random start (Ghorbani et al. 2019).

    All vectors of a run are kept, `steps` of them, and made orthogonal to each other twice, so that no eigenvalue is
    found a second time.
    """
    draw = _signs(loss_function, seed)
    nodes, weights = [], []
    for _ in range(runs):
        space = started(draw(1)[0])
        while grow(loss_function, space) and len(space.diagonal) < steps:
            pass
        values, vectors = space.pairs()
        nodes.append(values.tolist())
        weights.append((vectors[0] ** 2).tolist())
    return nodes, weights


def _arpack(
    loss_function: LossFunction, k: int, which: str, vectors: int, tol: float, seed: int, most: int
) -> tuple[Array, Array]:
    """Return k eigenvalues and the columns that belong to them.

    ARPACK measures a residual relative to its eigenvalue, and so never accepts one near zero. For "LA" and "SA" the
    matrix is therefore shifted by its largest eigenvalue in magnitude, which a few products give roughly.
    """
    start = np.random.default_rng(seed).standard_normal(loss_function.size)
    if which == "LM":
        return _run(loss_function, 0.0, k, which, vectors, tol, start, most)
    rough = extreme(loss_function, "LM", ROUGH, seed)[0]
    shift = abs(rough) * (1 if which == "LA" else -1)
    values, columns = _run(loss_function, shift, k, which, vectors, tol, start, most)
    return values - shift, columns


def _run(
    loss_function: LossFunction, shift: float, k: int, which: str, vectors: int, tol: float, start: Array, most: int
) -> tuple[Array, Array]:
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    dtype = np.float64 if loss_function.dtype == torch.float64 else np.float32

    def times(v: Array) -> Array:
        row = torch.as_tensor(v.reshape(1, -1), dtype=loss_function.dtype).to(loss_function.device)
        image: Array = loss_function.products(row)[0].add_(row[0], alpha=shift).cpu().numpy()
        return image

    operator = LinearOperator((loss_function.size, loss_function.size), matvec=times, dtype=dtype)
    try:
        return eigsh(operator, k=k, which=which, ncv=vectors, tol=tol, v0=start.astype(dtype), maxiter=most)  # type: ignore[no-any-return]
    except ArpackNoConvergence as error:
        raise RuntimeError(
            f"The {k} eigenvalues {which!r} did not converge to tol={tol:g} in {most} restarts: "
            f"{len(error.eigenvalues)} did. Ask for fewer, for a larger tol, or for more restarts (max_restarts)."
        ) from error


def _written_out(loss_function: LossFunction) -> Array:
    """Return the whole matrix."""
    rows = loss_function.products(torch.eye(loss_function.size, dtype=loss_function.dtype, device=loss_function.device))
    matrix: Array = ((rows + rows.T) / 2).double().cpu().numpy()
    return matrix


def _signs(loss_function: LossFunction, seed: int) -> Callable[[int], Tensor]:
    """Return a function that draws rows of +1 and -1, the same ones on every device and process."""
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> Tensor:
        signs = torch.randint(0, 2, (rows, loss_function.size), generator=generator, dtype=torch.int8)
        return (signs.to(loss_function.device, loss_function.dtype) * 2).sub_(1)

    return draw
