# SPDX-License-Identifier: Apache-2.0
"""Many tensors laid out as one vector, and back; inner products of two such vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_sam.vectors.vectors import chunks, contiguous_as, dot, sum_of, wider


@torch.no_grad()
def global_dot(left: list[Tensor], right: list[Tensor], params: list[Tensor] | None = None) -> Tensor:
    """Return the inner product of two lists of tensors taken as two vectors; arguments as for `global_norm`."""
    dtype = wider([*left, *right])
    owners = left if params is None else params
    cut = chunks(owners, contiguous_as(owners, left), contiguous_as(owners, right))
    return sum_of([dot(a, b, dtype) for _, _, a, b in cut], owners)


def split_as(tensors: list[Tensor], vector: Tensor) -> list[Tensor]:
    """Return the parts of a vector that belong to these tensors, as views of their shapes."""
    parts = torch.split(vector, [t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def write_(tensors: list[Tensor], vector: Tensor) -> None:
    """Write the elements of a vector back to the tensors that `as_vector` took them from, where it is a copy."""
    if len(tensors) > 1 or not tensors[0].is_contiguous() or tensors[0].data_ptr() != vector.data_ptr():
        torch._foreach_copy_(tensors, split_as(tensors, vector))
