# SPDX-License-Identifier: Apache-2.0
"""A second LoRA of one layer, as a forward hook."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from hf_sam.variants.lora.layers import active_factors


class Branch:
    """The second LoRA of one layer: adds B2 A2 x to what the layer returns, while it trains.

    It is not a module, so its weights are in no checkpoint, optimizer, clipping or parallel engine.

    Attributes:
        a: A2, rank x inputs.
        b: B2, outputs x rank.
        on: whether it perturbs at this time of the run.
        hidden: whether it is left out all the same, as it is between the passes of a trainer.
    """

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.on, self.hidden = False, False

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Add the branch's output, as a forward hook; not in evaluation, nor while adapters are disabled."""
        if self.hidden or not (
            self.on and layer.training and any(factors.trained for factors in active_factors(layer))
        ):
            return output
        x = inputs[0].to(self.a.dtype)
        return output + F.linear(F.linear(x, self.a), self.b).to(output.dtype)
