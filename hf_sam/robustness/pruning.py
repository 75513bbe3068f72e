# SPDX-License-Identifier: Apache-2.0
"""The smallest weights set to zero, as `torch.nn.utils.prune` chooses them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_sam.robustness.layers import layers_of, replace_weights

SCOPES = ("global", "layer")


def prune_weights(model: nn.Module, share: float, scope: str = "global") -> int:
    """Set a share of the weights of all linear layers and convolutions to zero, and return how many numbers that are.

    To be called inside `BorrowedModel.with_copies`, which puts every weight back.

    Args:
        model: with copies of its weights.
        share: of the weights, 0 to 1.
        scope: "global" removes the smallest ones of the whole model, as `prune.global_unstructured` with
            `L1Unstructured`; "layer" the same share of each layer, as `prune.l1_unstructured`.
    """
    layers = {layer.name: layer for layer in layers_of(model)}
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    if scope == "layer":
        kept = {name: _largest(weight.reshape(-1), share) for name, weight in weights.items()}
    else:
        together = _largest(torch.cat([weight.reshape(-1) for weight in weights.values()]), share)
        parts = torch.split(together, [weight.numel() for weight in weights.values()])
        kept = dict(zip(weights, parts, strict=True))
    replace_weights(layers, lambda layer: weights[layer.name] * kept[layer.name].view(layer.weight.shape))
    return sum(int((~mask).sum()) for mask in kept.values())


def _largest(flat: Tensor, share: float) -> Tensor:
    """Return which elements stay when the `share` of them with the smallest magnitudes goes."""
    kept = torch.ones_like(flat, dtype=torch.bool)
    count = round(share * flat.numel())
    if count:
        kept[torch.topk(flat.abs(), count, largest=False).indices] = False
    return kept
