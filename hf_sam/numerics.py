# SPDX-License-Identifier: Apache-2.0
"""How long is a gradient, how does a perturbation get its length, and how do the weights come back exactly?"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

HALF_PRECISION = (torch.float16, torch.bfloat16)


class Ascent(NamedTuple):
    """Where to climb.

    Attributes:
        epsilon: one tensor per parameter, of the parameter's shape.
        usable: 0-dim bool tensor; False when the gradient was zero or not finite, and then `epsilon` is all zeros.
    """

    epsilon: list[Tensor]
    usable: Tensor


def accumulation_dtype(tensors: list[Tensor]) -> torch.dtype:
    """Return the dtype in which sums over `tensors` are taken: float32, or float64 when one of them is float64."""
    return functools.reduce(torch.promote_types, {t.dtype for t in tensors}, torch.float32)


@torch.no_grad()
def global_norm(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of all tensors taken as one vector.

    Args:
        tensors: at least one tensor, all on one device, any floating dtypes and shapes.

    Returns:
        0-dim tensor on the tensors' device, accumulated in float32 (float64 when an input is).
    """
    norms = torch._foreach_norm(tensors, 2, dtype=accumulation_dtype(tensors))
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


@torch.no_grad()
def dot(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """Return the inner product of two lists of tensors taken as two vectors, accumulated in at least float32."""
    dtype = accumulation_dtype([*left, *right])
    products = [torch.dot(a.flatten().to(dtype), b.flatten().to(dtype)) for a, b in zip(left, right, strict=True)]
    return torch.stack(products).sum()


@torch.no_grad()
def scale_to_length_(vectors: list[Tensor], length: float, norm: Tensor) -> Ascent:
    """Multiply `vectors` in place by `length / norm`, or set them to zero where that is not a number.

    The decision stays on the device: an accelerator is never asked to wait for the host (promise 8).

    Args:
        vectors: the direction, overwritten with epsilon.
        length: the radius rho, >= 0.
        norm: 0-dim tensor, what the direction is divided by.

    Returns:
        The scaled vectors and whether they could be scaled.
    """
    scale = length / norm
    usable = torch.isfinite(norm) & torch.isfinite(scale)
    scale = torch.where(usable, scale, 0.0)
    torch._foreach_mul_(vectors, scale)
    # inf * 0 is NaN. Reading one flag is free on a CPU, where it saves a pass over the memory.
    if norm.device.type != "cpu" or not usable:
        for vector in vectors:
            vector.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    return Ascent(vectors, usable)


@torch.no_grad()
def snapshot(tensors: list[Tensor]) -> list[Tensor]:
    """Return copies of `tensors`, bit for bit."""
    return [t.detach().clone() for t in tensors]


@torch.no_grad()
def restore_(tensors: list[Tensor], copies: list[Tensor]) -> None:
    """Write the copies back in place: same storage, same bits (adding and subtracting epsilon would not give them)."""
    if tensors:
        torch._foreach_copy_(tensors, copies)
