# SPDX-License-Identifier: Apache-2.0
"""Norms, inner products, pieces and copies of many tensors taken as one vector."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hf_sam.vectors.groups import alike
from hf_sam.vectors.shards import Shards

HALF_PRECISION = frozenset({torch.float16, torch.bfloat16})
PIECE = 2**17
"""Elements in one piece on a CPU: a few arrays of this length fit the second-level cache."""
PARTS = 2
"""Pieces on an accelerator: few launches, and intermediate results of half the weights at most."""
ROW = 2**12
"""Elements that a CPU squares and sums in one go."""


class Ascent(NamedTuple):
    """Where to climb: epsilon = scale * direction, which a perturbation forms piece by piece; or nowhere.

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
    `direction` may be overwritten from here on; `norm` is a 0-dim tensor, `length` may be one.
    """
    scale = length / norm
    usable = is_finite(scale * norm)  # about the length, unless one of the two is not finite
    return Ascent(direction, torch.where(usable, scale, 0.0), usable)


def is_finite(x: Tensor) -> Tensor:
    """Return `torch.isfinite(x)` in two operations instead of four."""
    return x - x == 0


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
        dtype = wider(tensors)
        cut = chunks(owners, contiguous_as(owners, tensors)) if owners is not tensors else chunks(tensors)
        return sum_of([dot(piece, piece, dtype) for _, *_, piece in cut], tensors if params is None else params).sqrt()
    norms = torch._foreach_norm(tensors, 2, dtype=accumulation_dtype(tensors))
    return torch.linalg.vector_norm(torch.stack(list(norms)))  # type: ignore[no-any-return]


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
        a = as_vector(left)
        if left is right:
            return _square(a.to(dtype))
        b = as_vector(right)
        if a.dtype != b.dtype or a.dtype != dtype:
            a, b = a.to(dtype), b.to(dtype)
        # Products first: `sum` adds in a tree, where a dot product of float32 loses two digits on some CPUs, and gives
        # other bits for memory that is aligned otherwise. The products of a piece stay in the cache.
        return (a * b).sum().item()
    if left is right and len(left) > 1:
        return global_norm(left).square()
    return torch.dot(as_vector(left).to(dtype), as_vector(right).to(dtype))


def _square(a: Tensor) -> float:
    """Return the inner product of a vector with itself on a CPU, row by row: reads it once and loses nothing."""
    whole = a.numel() // ROW * ROW
    total = torch.linalg.vector_norm(a[:whole].view(-1, ROW), dim=1).double().square_().sum().item() if whole else 0.0
    rest = torch.linalg.vector_norm(a[whole:]).item() if whole < a.numel() else 0.0
    return float(total + rest * rest)


def sum_of(products: list[Tensor | float], params: list[Tensor]) -> Tensor:
    """Return the sum of what `dot` returned for the `chunks` of `params`, over all processes that hold shards."""
    return sums([products], params)[0]


def sums(columns: list[list[Tensor | float]], params: list[Tensor]) -> list[Tensor]:
    """Return `sum_of` of several columns of products with one reduction, in the parameters' accumulation dtype."""
    if isinstance(params, Shards):
        copies = [params.copies[id(owners[0])] for owners, _ in chunks(params)]
        columns = [[x / n for x, n in zip(column, copies, strict=True)] for column in columns]
    if params[0].device.type == "cpu":
        sums = torch.tensor([float(sum(column)) for column in columns], dtype=torch.float64)
    else:
        sums = torch.stack([torch.as_tensor(x) for column in columns for x in column]).view(len(columns), -1).sum(1)
    if isinstance(params, Shards):
        torch.distributed.all_reduce(sums)
    return list(sums.to(accumulation_dtype(params)).unbind())


def wider(tensors: list[Tensor]) -> torch.dtype:
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


def as_vector(tensors: list[Tensor]) -> Tensor:
    """Return the elements of a piece (see `chunks`) one after the other: of one tensor a view, of several a copy."""
    return tensors[0].reshape(-1) if len(tensors) == 1 else torch.cat([t.reshape(-1) for t in tensors])


def chunks(params: list[Tensor], *lists: list[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Cut the parameters and lists of tensors of the same shapes into pieces to be worked on at once.

    On a CPU a piece fits the cache, which halves the time of several operations in a row: a part of a large parameter,
    or several small parameters. On an accelerator, where every operation costs a launch, it is half of everything.
    The tensors of a piece have one dtype.

    Yields:
        The parameters a piece belongs to, then for `params` and each list the tensors of the piece, views of the whole.
        Of parameters spread over processes these are the parts on this process, and so the lists must be. How they are
        cut depends on `params` alone; the lists must be laid out like them (see `contiguous_as`).
    """
    w = weights(params)
    whole = [w, *[_outside_autograd(tensors) for tensors in lists]]
    for group in _groups(params, w):
        owners = [params[i] for i in group]
        if len(owners) == 1 and _is_cut(w[group[0]]):
            cuts = [torch.split(tensors[group[0]].view(-1), PIECE) for tensors in whole]
            for cut in zip(*cuts, strict=True):
                yield (owners, *[[piece] for piece in cut])
        else:
            yield (owners, *[[tensors[i] for i in group] for tensors in whole])


def contiguous_as(params: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Return `tensors`, those copied that are not contiguous where their parameter is."""
    if len(tensors) == len(params) and all([t.is_contiguous() for t in tensors]):  # noqa: C419 (fewer calls)
        return tensors
    return [t.contiguous() if w.is_contiguous() else t for w, t in zip(weights(params), tensors, strict=True)]


def _groups(params: list[Tensor], w: list[Tensor]) -> list[list[int]]:
    """Return the indices of parameters that are worked on at once.

    They have one dtype, and the same number of processes holds each, so that what they add to a sum is divided by that
    number. On a CPU they are neighbours with at most PIECE elements together, or one; on an accelerator all that are
    alike, in PARTS.
    """
    copies = [params.copies[id(p)] for p in params] if isinstance(params, Shards) else [1] * len(w)
    sizes = [part.numel() for part in w]
    if w[0].device.type != "cpu":
        return alike([(part.dtype, n) for part, n in zip(w, copies, strict=True)], sizes, -(-sum(sizes) // PARTS))
    groups: list[list[int]] = []
    size = last = 0
    for i, count in enumerate(sizes):
        size += count
        if not groups or size > PIECE or w[i].dtype != w[last].dtype or copies[i] != copies[last]:
            groups.append([])
            size = count
        groups[-1].append(i)
        last = i
    return groups


def _is_cut(w: Tensor) -> bool:
    """Return whether a parameter is worked on in parts."""
    return w.device.type == "cpu" and w.numel() > PIECE and w.is_contiguous()


@torch.no_grad()
def snapshot(tensors: list[Tensor]) -> list[Tensor]:
    """Return copies of `tensors`, bit for bit, in few launches; on a CPU, where these cost nothing, one by one."""
    if tensors and tensors[0].device.type == "cpu":
        return [t.clone() for t in _outside_autograd(tensors)]
    copies = [torch.empty_like(t, requires_grad=False) for t in tensors]
    restore_(copies, _outside_autograd(tensors))
    return copies


@torch.no_grad()
def restore_(tensors: list[Tensor], copies: list[Tensor]) -> None:
    """Write the copies back in place: same storage, same bits."""
    if tensors:
        torch._foreach_copy_(tensors, copies)
