# SPDX-License-Identifier: Apache-2.0
"""What the optimizer sees instead of h: combined by the variant, then mixed, then renormalised."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hf_sam._checks import check_number
from hf_sam.variants.base import Variant
from hf_sam.vectors.flat import write_
from hf_sam.vectors.vectors import as_vector, chunks, contiguous_as, global_norm, gradients, snapshot


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
ROUNDINGS = 4
"""Units in the last place by which two equal norms may differ."""


class MixedGradient:
    """What a variant and `GradientMixing` make of g and h.

    Args:
        params: the parameters that move, with g in `.grad`: what is needed of it is copied here.
        variant: combines the two gradients, or does not.
        mixing: what is asked for beside.

    Attributes:
        clean: a copy of g; None where only its length is needed.
    """

    def __init__(self, params: list[Tensor], variant: Variant, mixing: GradientMixing) -> None:
        self._params, self._variant, self._mixing = params, variant, mixing
        g = gradients(params)
        self.clean = snapshot(g) if variant.combines or mixing.weight != 1 else None
        self._clean_norm = global_norm(g, params) if mixing.renormalise else None

    def of(self, h: list[Tensor]) -> list[Tensor]:
        """Return what the optimizer is to see instead of h, whose memory may be used."""
        if self._variant.combines and self.clean is not None:
            h = self._variant.combine(self.clean, h)
        if self._mixing.weight != 1 and self.clean is not None:
            mix_(h, self.clean, self._mixing.weight)
        if self._clean_norm is not None:
            renormalise_(h, self._clean_norm, self._params)
        return h


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
        h_all, g_all = as_vector(h), as_vector(g)
        mixed = torch.lerp(h_all, g_all, 1 - weight)
        write_(h, torch.where(h_all == g_all, h_all, mixed))  # what did not move stays, to the sign of a zero


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
    factor = clean_norm / norm
    # Of a micro-batch h is what the pass has added to earlier gradients, which rounds; a factor near 1 is only that.
    usable &= (factor - 1).abs() > ROUNDINGS * torch.finfo(factor.dtype).eps
    factor = torch.where(usable, factor, 1.0)
    torch._foreach_mul_(perturbed, factor)
