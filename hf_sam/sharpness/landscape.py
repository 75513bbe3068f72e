# SPDX-License-Identifier: Apache-2.0
"""The loss along random directions from the weights, and on the way to other weights."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_sam._checks import check_count, check_number
from hf_sam.sharpness.bookkeeping import measuring
from hf_sam.sharpness.results import Measured

if TYPE_CHECKING:
    from hf_sam.sharpness.analyzer import SharpnessAnalyzer

Progress = Callable[[Iterable[Any]], Iterable[Any]]
"""Wraps the iterable of a loop and shows how far the loop is, as `tqdm.tqdm` does."""


@dataclass(frozen=True, kw_only=True)
class Landscape(Measured):
    """The loss at w + x d, or at w + x d + y e.

    Attributes:
        x: distances along the first direction; 1 changes each row of each matrix by its own norm.
        y: along the second; empty in one dimension.
        losses: at each x, or at each y a list over x.
    """

    x: list[float]
    y: list[float] = field(default_factory=list)
    losses: list[Any] = field(repr=False)


def landscape_1d(
    analyzer: SharpnessAnalyzer, span: float = 1.0, points: int = 21, seed: int = 0, progress: Progress = iter
) -> Landscape:
    """Return the loss at w + x d for x from -span to span (Li et al. 2018, filter normalisation).

    d is normal noise, the same for every checkpoint of an architecture; each row of a matrix (each filter of a
    convolution) is then given the norm of the row it moves, and biases and normalisations stay where they are.

    Args:
        analyzer: of the model, with the examples.
        span: > 0, in norms of the rows.
        points: >= 1, best an odd number, which has the weights themselves in the middle.
        seed: of the direction.
        progress: shows how far it is.
    """
    x = _steps("landscape_1d", span, points)
    loss_function = analyzer.loss_function
    direction = filter_direction(loss_function.names, loss_function.parameters, seed)
    with measuring(loss_function, analyzer.settings, span=span, direction_seed=seed) as how:
        losses = []
        for distance in progress(x):
            with loss_function.moved(distance * direction):
                losses.append(loss_function.loss())
    return Landscape(x=x, losses=losses, **how)


def landscape_2d(
    analyzer: SharpnessAnalyzer, span: float = 1.0, points: int = 21, seed: int = 0, progress: Progress = iter
) -> Landscape:
    """Return the loss on a square of points^2 points, as `landscape_1d` does on a line."""
    x = _steps("landscape_2d", span, points)
    loss_function = analyzer.loss_function
    first, second = (filter_direction(loss_function.names, loss_function.parameters, s) for s in (seed, seed + 1))
    with measuring(loss_function, analyzer.settings, span=span, direction_seed=seed) as how:
        losses: list[list[float]] = [[] for _ in x]
        for row, column in progress([(i, j) for i in range(len(x)) for j in range(len(x))]):
            with loss_function.moved(x[column] * first + x[row] * second):
                losses[row].append(loss_function.loss())
    return Landscape(x=x, y=x, losses=losses, **how)


def filter_direction(names: Sequence[str], parameters: Sequence[Tensor], seed: int) -> Tensor:
    """Return noise in which each row of each matrix has the norm of the parameters' row; zero for vectors.

    Each parameter draws from a stream of its own, seeded by its name, so that models share what they have in common.
    """
    pieces = []
    for name, p in zip(names, parameters, strict=True):
        if p.dim() < 2:
            pieces.append(torch.zeros(p.numel(), dtype=p.dtype, device=p.device))
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed * 0x9E3779B1)
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device, p.dtype).flatten(1)
        length = p.detach().flatten(1).norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
        pieces.append((noise * length).reshape(-1))
    return torch.cat(pieces)


@dataclass(frozen=True, kw_only=True)
class Interpolation:
    """The loss on the straight line from one model's weights to another's.

    Attributes:
        t: shares of the way, from 0 to 1.
        losses: at each t.
        metrics: at each t, if asked for.
        barrier: the largest rise of the loss above the line between its values at the ends, >= 0.
    """

    t: list[float]
    losses: list[float]
    metrics: list[float] = field(default_factory=list)
    barrier: float


def interpolate(
    a: nn.Module,
    b: nn.Module,
    measure: Callable[[nn.Module], float | tuple[float, float]],
    points: int = 21,
    progress: Progress = iter,
) -> Interpolation:
    """Return the loss at (1 - t) a + t b, all parameters and buffers of floating point interpolated.

    Running means and variances of batch normalisation are interpolated, too, not computed anew from data: between
    models that were trained apart they fit no data, and the barrier comes out too high. A `measure` that first passes
    data through the model in training mode computes them anew.

    Args:
        a: a model, not changed.
        b: one with the same tensors, not changed.
        measure: model -> loss, or (loss, metric); `lambda m: SharpnessAnalyzer(m, dataset).loss()` is one.
        points: >= 2.
        progress: shows how far it is.

    Raises:
        ValueError: if the models have other tensors.
    """
    check_count("interpolate", "points", points, least=2)
    start, end = a.state_dict(), b.state_dict()
    other = [name for name in {*start, *end} if name not in start or name not in end]
    other += [name for name in start if name in end and start[name].shape != end[name].shape]
    if other:
        raise ValueError(f"`interpolate(a, b)` needs two models with the same tensors; {sorted(other)[0]} differs.")
    between = copy.deepcopy(a)
    t = np.linspace(0, 1, points).tolist()
    found = []
    for share in progress(t):
        between.load_state_dict({name: _between(start[name], end[name], share) for name in start})
        value = measure(between)
        found.append(value if isinstance(value, tuple) else (value,))
    losses = [each[0] for each in found]
    rises = [loss - (1 - s) * losses[0] - s * losses[-1] for s, loss in zip(t, losses, strict=True)]
    metrics = [each[1] for each in found if len(each) > 1]
    return Interpolation(t=t, losses=losses, metrics=metrics, barrier=max(0.0, *rises))


def _between(start: Tensor, end: Tensor, share: float) -> Tensor:
    if not start.is_floating_point():
        return start if share < 1 else end.to(start.device)
    if share in (0, 1):
        return end if share else start
    wide = torch.promote_types(start.dtype, torch.float32)
    return torch.lerp(start.to(wide), end.to(start.device, wide), share).to(start.dtype)


def _steps(where: str, span: float, points: int) -> list[float]:
    check_number(where, "span", span, above=0)
    check_count(where, "points", points)
    steps: list[float] = np.linspace(-span, span, points).tolist() if points > 1 else [0.0]
    return steps
