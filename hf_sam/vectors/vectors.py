# SPDX-License-Identifier: Apache-2.0
"""Norms, inner products, pieces and copies of many tensors taken as one vector."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hf_sam.vectors.shards import Shards

HALF_PRECISION = frozenset({torch.float16, torch.bfloat16})
PIECE = 2**17
"""Elements in one piece on a CPU: a few arrays of this length fit the second-level cache."""
ROW = 2**12
"""Elements that a CPU squares and sums in one go."""


class Ascent(NamedTuple):
    """Where to climb: epsilon = scale * direction, or nowhere.

    The product is not formed here, so that the perturbation can form it piece by piece in a CPU's cache.

    Attributes:
        direction: one tensor per parameter, of its shape. The perturbation may overwrite them, unless they are lent.
        scale: 0-dim tensor; zero when not usable.
        usable: 0-dim bool tensor; False when the gradient was zero or not finite, and then epsilon is zero.
        lent: whether the direction belongs to another object (an optimizer), so that it may only be read.
    """

    direction: list[Tensor]
    scale: Tensor
    usable: Tensor
    lent: bool = False

    @property
    def epsilon(self) -> list[Tensor]:
        """The perturbation, in new memory."""
        return [torch.where(self.usable, d * self.scale, 0.0).to(d.dtype) for d in self.direction]


def along(direction: list[Tensor], length: float | Tensor, norm: Tensor) -> Ascent:
    """Return the ascent with epsilon = length / norm * direction; nowhere if that factor is not a finite number.

    The decision stays on the device: an accelerator is never asked to wait for the host (promise 8).

    Args:
        direction: one tensor per parameter, which may be overwritten from here on.
        length: the radius rho, >= 0; a number or a 0-dim tensor.
        norm: 0-dim tensor.
    """
    scale = length / norm
    usable = torch.isfinite(norm) & torch.isfinite(scale)
    return Ascent(direction, torch.where(usable, scale, 0.0), usable)


def accumulation_dtype(tensors: list[Tensor]) -> torch.dtype:
    """Return the dtype in which sums over `tensors` are taken: float32, or float64 when one of them is float64."""
    return functools.reduce(torch.promote_types, {t.dtype for t in tensors}, torch.float32)


@torch.no_grad()
def global_norm(tensors: list[Tensor], params: list[Tensor] | None = None) -> Tensor:
    """Return the Euclidean norm of all tensors taken as one vector.

    Args:
        tensors: at least one tensor, all on one device, any floating dtypes and shapes.
        params: the parameters that the tensors belong to, where these may be spread over processes (`Shards`): the
            norm is then that of the whole vector, the same on every process.

    Returns:
        0-dim tensor on the tensors' device, accumulated in float32 (float64 when an input is).
    """
    owners = params if isinstance(params, Shards) else tensors
    if tensors[0].device.type == "cpu" or isinstance(owners, Shards):
        # Piece by piece: a CPU sums one tensor in one go, which loses three digits over 1e7 elements of float32.
        dtype = _wider(tensors)
        cut = chunks(owners, contiguous_as(owners, tensors)) if owners is not tensors else chunks(tensors)
        return sum_of([dot(piece, piece, dtype) for _, *_, piece in cut], tensors if params is None else params).sqrt()
    norms = torch._foreach_norm(tensors, 2, dtype=accumulation_dtype(tensors))
    norm: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)))
    return norm


@torch.no_grad()
def global_dot(left: list[Tensor], right: list[Tensor], params: list[Tensor] | None = None) -> Tensor:
    """Return the inner product of two lists of tensors taken as two vectors; arguments as for `global_norm`."""
    dtype = _wider([*left, *right])
    owners = left if params is None else params
    cut = chunks(owners, contiguous_as(owners, left), contiguous_as(owners, right))
    return sum_of([dot(a, b, dtype) for _, _, a, b in cut], owners)


@torch.no_grad()
def dot(left: list[Tensor], right: list[Tensor], dtype: torch.dtype | None = None) -> Tensor | float:
    """Return the inner product of one piece (see `chunks`), for `sum_of` to add up.

    On a CPU, where reading a number is free, it is a float: adding those costs nothing and loses nothing.

    Args:
        left: tensors of any dtypes and shapes.
        right: tensors of the same shapes.
        dtype: in which to accumulate; `accumulation_dtype` of the piece by default.
    """
    dtype = dtype or accumulation_dtype([*left, *right])
    if left[0].device.type == "cpu":
        a = _as_vector(left)
        if left is right:
            return _square(a.to(dtype))
        b = _as_vector(right)
        if a.dtype != b.dtype or a.dtype != dtype:
            a, b = a.to(dtype), b.to(dtype)
        # Products first: `sum` adds in a tree, where a dot product of float32 loses two digits on some CPUs, and gives
        # other bits for memory that is aligned otherwise. The products of a piece stay in the cache.
        return (a * b).sum().item()
    if left is right:
        return global_norm(left).square()
    products = [torch.dot(a.flatten().to(dtype), b.flatten().to(dtype)) for a, b in zip(left, right, strict=True)]
    return torch.stack(products).sum()


def _square(a: Tensor) -> float:
    """Return the inner product of a vector with itself, on a CPU: row by row, which reads it once and writes nothing.

    A row is short enough for its sum to lose nothing that shows; the bits do not depend on where it lies in memory.
    """
    whole = a.numel() // ROW * ROW
    rows = torch.linalg.vector_norm(a[:whole].view(-1, ROW), dim=1).double()
    squares = rows.square_().sum() + torch.linalg.vector_norm(a[whole:]).double().square()
    return float(squares)


def sum_of(products: list[Tensor | float], params: list[Tensor]) -> Tensor:
    """Return the sum of what `dot` returned for the `chunks` of `params`, over all processes that hold shards.

    Returns:
        0-dim tensor on the parameters' device, in their accumulation dtype.
    """
    (total_sum,) = sums([products], params)
    return total_sum


def sums(columns: list[list[Tensor | float]], params: list[Tensor]) -> list[Tensor]:
    """Return `sum_of` of several columns of products with one reduction over the processes."""
    cpu = params[0].device.type == "cpu"
    if isinstance(params, Shards):
        copies = [params.copies[id(owners[0])] for owners, _ in chunks(params)]
        columns = [[x / n for x, n in zip(column, copies, strict=True)] for column in columns]
    if cpu:
        sums = torch.tensor([float(sum(column)) for column in columns], dtype=torch.float64)
    else:
        sums = torch.stack([torch.stack([torch.as_tensor(x) for x in column]).sum() for column in columns])
    if isinstance(params, Shards):
        torch.distributed.all_reduce(sums)
    return list(sums.to(accumulation_dtype(params)).unbind())


def _wider(tensors: list[Tensor]) -> torch.dtype:
    """Return the accumulation dtype, or float64 for 16 bits: a CPU has to convert those anyway."""
    return torch.float64 if loses_bits(tensors) else accumulation_dtype(tensors)


def loses_bits(tensors: list[Tensor]) -> bool:
    """Return whether one of `tensors` is stored in 16 bits, which round much of a small sum away."""
    return not HALF_PRECISION.isdisjoint({t.dtype for t in tensors})


def weights(params: list[Tensor]) -> list[Tensor]:
    """Return what this process holds of each parameter, in the same memory, outside of autograd."""
    return params.weights() if isinstance(params, Shards) else _outside_autograd(params)


def _outside_autograd(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach() if t.requires_grad else t for t in tensors]


def gradients(params: list[Tensor]) -> list[Tensor]:
    """Return what this process holds of the gradients of `params`, of those that have one."""
    return params.gradients() if isinstance(params, Shards) else [p.grad for p in params if p.grad is not None]


def same_kind(params: list[Tensor], chosen: list[Tensor]) -> list[Tensor]:
    """Return `chosen`, some of `params`, as the kind of list that `params` is."""
    return params.some(chosen) if isinstance(params, Shards) else chosen


def _as_vector(tensors: list[Tensor]) -> Tensor:
    return tensors[0].reshape(-1) if len(tensors) == 1 else torch.cat([t.reshape(-1) for t in tensors])


def chunks(params: list[Tensor], *lists: list[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Cut the parameters and lists of tensors of the same shapes into pieces to be worked on at once.

    On a CPU a piece fits the cache, which halves the time of several operations in a row: a part of a large parameter,
    or several small parameters. On an accelerator, where every operation costs a launch, it is everything.

    Yields:
        The parameters a piece belongs to, then for `params` and each list the tensors of the piece, views of the whole.
        Of parameters spread over processes these are the parts on this process, and so the lists must be. How they are
        cut depends on `params` alone; the lists must be laid out like them (see `contiguous_as`).
    """
    w = weights(params)
    whole = [w, *[_outside_autograd(tensors) for tensors in lists]]
    start = 0
    for end in _ends(params, w):
        owners = params[start:end]
        if len(owners) == 1 and _is_cut(w[start]):
            cuts = [torch.split(tensors[start].view(-1), PIECE) for tensors in whole]
            for cut in zip(*cuts, strict=True):
                yield (owners, *[[piece] for piece in cut])
        else:
            yield (owners, *[tensors[start:end] for tensors in whole])
        start = end


def contiguous_as(params: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Return `tensors`, those copied that are not contiguous where their parameter is."""
    if len(tensors) == len(params) and all(t.is_contiguous() for t in tensors):
        return tensors
    return [t.contiguous() if w.is_contiguous() else t for w, t in zip(weights(params), tensors, strict=True)]


def _ends(params: list[Tensor], w: list[Tensor]) -> list[int]:
    """Return where groups of neighbours end that are worked on at once.

    On a CPU they have at most PIECE elements together, or are one, and have one dtype. Everywhere the same number of
    processes holds them, so that what they add to a sum is divided by that number.
    """
    ends, size = [], 0
    cpu = w[0].device.type == "cpu"
    copies = [params.copies[id(p)] for p in params] if isinstance(params, Shards) else [1] * len(params)
    for i, part in enumerate(w):
        too_large = cpu and (size + part.numel() > PIECE or (i and part.dtype != w[i - 1].dtype))
        if i and (too_large or copies[i] != copies[i - 1]):
            ends.append(i)
            size = 0
        size += part.numel()
    return [*ends, len(w)]


def _is_cut(w: Tensor) -> bool:
    """Return whether a parameter is worked on in parts."""
    return w.device.type == "cpu" and w.numel() > PIECE and w.is_contiguous()


@torch.no_grad()
def snapshot(tensors: list[Tensor]) -> list[Tensor]:
    """Return copies of `tensors`, bit for bit, in few launches."""
    copies = [torch.empty_like(t, requires_grad=False) for t in tensors]
    restore_(copies, _outside_autograd(tensors))
    return copies


@torch.no_grad()
def restore_(tensors: list[Tensor], copies: list[Tensor]) -> None:
    """Write the copies back in place: same storage, same bits."""
    if tensors:
        torch._foreach_copy_(tensors, copies)
