# SPDX-License-Identifier: Apache-2.0
"""What may be made of the perturbed gradient, whatever the direction, before the optimizer sees it?

First mix, then renormalise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hf_sam._checks import check_number
from hf_sam.vectors.vectors import chunks, contiguous_as, global_norm


class GradientMixing(NamedTuple):
    """What is asked for.

    Attributes:
        weight: of the sharpness, >= 0 (see `mix_`); 1 leaves h as it is.
        renormalise: whether h is given the length of g.
    """

    weight: float = 1.0
    renormalise: bool = False

    @property
    def changes(self) -> bool:
        """Whether h is changed at all."""
        return self.weight != 1 or self.renormalise


UNMIXED = GradientMixing()


@torch.no_grad()
def mix_(perturbed: list[Tensor], clean: list[Tensor], weight: float) -> None:
    """Replace h by g + weight * (h - g): weighted sharpness (Yue et al. 2023, WSAM).

    That is the weight of the sharpness L(w + epsilon) - L(w) in what is minimised: 0 is the plain loss and 1 is SAM,
    without rounding; gamma / (1 - gamma) is the paper's gamma.

    Args:
        perturbed: h, changed in place.
        clean: g, tensors of the same shapes and dtypes.
        weight: >= 0.

    Raises:
        TypeError: if the weight is no number.
        ValueError: if it is out of range.
    """
    weight = check_number("mix_", "weight", weight, least=0)
    for _, h, g in chunks(perturbed, contiguous_as(perturbed, clean)):
        for h_i, g_i in zip(h, g, strict=True):
            mixed = torch.lerp(h_i, g_i, 1 - weight)
            h_i.copy_(torch.where(h_i == g_i, h_i, mixed))  # what did not move stays, to the sign of a zero


@torch.no_grad()
def renormalise_(perturbed: list[Tensor], clean_norm: Tensor, params: list[Tensor] | None = None) -> None:
    """Give h the length of g: h * ||g|| / ||h|| (Tan et al. 2025, SSAM).

    h stays as it is where either norm is zero or not finite.

    Args:
        perturbed: h, changed in place.
        clean_norm: ||g||, a 0-dim tensor (see `hf_sam.vectors.vectors.global_norm`), on the device of h;
            g itself may be gone.
        params: the parameters that h belongs to, where these may be spread over processes.
    """
    norm = global_norm(perturbed, params)
    usable = torch.isfinite(norm) & torch.isfinite(clean_norm) & (norm > 0) & (clean_norm > 0)
    factor = torch.where(usable, clean_norm / norm, 1.0)
    torch._foreach_mul_(perturbed, factor)
