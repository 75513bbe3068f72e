# SPDX-License-Identifier: Apache-2.0
"""The elements of a tensor: whether they can be copied and written back, and whether they are still the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FRACTIONS_OF_A_BYTE = {f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)}
"""Data types that torch cannot copy."""
SAMPLE = 1024
"""Elements of a tensor that is only looked at."""


def is_readable(tensor: Tensor) -> bool:
    """Return whether a tensor has elements of its own that can be copied and written back."""
    if tensor.is_meta or tensor.is_inference() or tensor.is_nested or torch.nn.parameter.is_lazy(tensor):
        return False
    if tensor.layout != torch.strided or tensor.is_quantized or str(tensor.dtype)[6:] in FRACTIONS_OF_A_BYTE:
        return False
    # Fewer bytes than elements: some share memory, such a constant can be written neither by a forward pass nor by us;
    # or an engine has let go of them.
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def plain(tensor: Tensor) -> Tensor:
    """Return the tensor without its graph, and without what a subclass makes of operations."""
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor.detach()
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach()


def bits(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor, a copy where they are apart: they compare as numbers do not (nan)."""
    return tensor.resolve_conj().resolve_neg().reshape(-1).contiguous().view(torch.uint8).clone()


def glance(tensor: Tensor) -> tuple[Any, Tensor | None]:
    """Return what shows most changes of a tensor without a copy: its version, memory and size, and some elements."""
    held = plain(tensor)
    sample = bits(held.view(-1)[:: max(1, held.numel() // SAMPLE)]) if held.is_contiguous() else None
    return (tensor._version, held.data_ptr(), held.shape), sample


def same_glance(now: tuple[Any, Tensor | None], before: tuple[Any, Tensor | None]) -> bool:
    """Return whether two glances show the same. Waits for the device."""
    if now[0] != before[0] or now[1] is None or before[1] is None:
        return bool(now[0] == before[0])
    return torch.equal(now[1], before[1])
