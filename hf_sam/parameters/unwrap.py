# SPDX-License-Identifier: Apache-2.0
"""Take the wrappers for several devices and for compilation off a model."""

from __future__ import annotations

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DDP, DataParallel and `torch.compile`, in any order; the model itself without them.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(layer)) is layer and unwrapped(layer) is layer
        True
    """
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inside = model.module
        else:
            inside = getattr(model, "_orig_mod", None)  # of torch.compile
        if not isinstance(inside, nn.Module):
            return model
        model = inside
