# SPDX-License-Identifier: Apache-2.0
"""When are two lists of tensors the same: to the bit, or to rounding?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return copies as integers: NaN equals itself and -0.0 is not 0.0."""
    return [t.detach().clone().contiguous().view(INTEGERS[t.element_size()]) for t in tensors]


def same_bits(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Return whether two results of `bits` are equal."""
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference in any tensor, as a share of that tensor's largest magnitude."""
    return max(
        ((a.double() - e.double()).abs().max() / torch.maximum(a.abs().max(), e.abs().max()).double()).item()
        for a, e in zip(actual, expected, strict=True)
    )
