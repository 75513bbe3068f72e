# SPDX-License-Identifier: Apache-2.0
"""Friendly-SAM: climb along what this batch's gradient has beyond the mean of the gradients so far."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hf_sam._checks import check_number
from hf_sam.variants.base import Length, Variant
from hf_sam.variants.per_parameter_state import PerParameterState
from hf_sam.vectors.flat import write_
from hf_sam.vectors.vectors import Ascent, along, as_vector, chunks, contiguous_as, dot, global_norm, is_finite, sum_of

ROUNDING = 8
"""Units in the last place of ||g||: a d that is not longer is rounding, not a direction."""


class FriendlySAM(Variant):
    """Friendly Sharpness-Aware Minimization (Li et al. 2024, algorithm 1).

        m <- lmbda * m + (1 - lmbda) * g,   d = g - sigma * m,   epsilon = rho * d / ||d||_2

    m starts at zero and stands for the gradient of the whole data set, so d is the noise of the batch. m is kept
    unscaled (see `Variant.loss_scale`), in at least float32: the memory of one more gradient, saved with a checkpoint.
    A gradient that is zero or not finite does not enter m. A step without a gradient for a parameter leaves its m.

    Args:
        sigma: how much of m is taken off, >= 0; 0 is SAM. sigma * (1 - lmbda) must be < 1: from there on epsilon would
            point downhill.
        lmbda: weight of the past in m, in [0, 1). The paper's runs have 0.6 to 0.95.

    Raises:
        TypeError: if an option is no number.
        ValueError: if one is out of range.
    """

    title = "Friendly-SAM"
    remembers = True
    uses_loss_scale = True
    citation = """@inproceedings{li2024friendly,
    title     = {Friendly Sharpness-Aware Minimization},
    author    = {Tao Li and Pan Zhou and Zhengbao He and Xinwen Cheng and Xiaolin Huang},
    booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
    year      = {2024},
    url       = {https://arxiv.org/abs/2403.12350}
}"""

    def __init__(self, *, sigma: float = 1.0, lmbda: float = 0.9) -> None:
        self.sigma = check_number("FriendlySAM", "sigma", sigma, least=0)
        self.lmbda = check_number("FriendlySAM", "lmbda", lmbda, least=0, below=1)
        if self.sigma * (1 - self.lmbda) >= 1:
            raise ValueError(
                "`FriendlySAM(sigma=...)` times (1 - lmbda) must be < 1, or epsilon points downhill, got "
                f"sigma={sigma!r} and lmbda={lmbda!r}. Take a smaller sigma or a larger lmbda."
            )
        self._mean = PerParameterState("mean")

    def prepare(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Learn the names under which the running mean is saved."""
        self._mean.prepare(named_parameters)

    @torch.no_grad()
    def ascend(self, params: list[Tensor], grads: list[Tensor], rho: Length) -> Ascent:
        """Let g enter m; return rho * d / ||d||."""
        grads, squares = contiguous_as(params, grads), []
        length = global_norm(grads, params)
        scaled = isinstance(self.loss_scale, Tensor) or self.loss_scale != 1
        length_of_g = length / self.loss_scale if scaled else length
        usable = is_finite(length_of_g) & (length_of_g > 0)
        for _, _, g, m in chunks(params, grads, self._mean.of(params)):
            g_all, m_all = as_vector(g), as_vector(m)
            unscaled = g_all.to(m_all.dtype)
            moved = torch.lerp(m_all, unscaled / self.loss_scale if scaled else unscaled, 1 - self.lmbda)
            moved = torch.where(usable, moved, m_all)
            write_(m, moved)
            sigma_m = moved.mul_(self.sigma)
            d = [g_all.sub_(sigma_m.mul_(self.loss_scale) if scaled else sigma_m)]
            write_(g, d[0])
            squares.append(dot(d, d))
        distance = sum_of(squares, params).sqrt()
        is_way = distance > ROUNDING * torch.finfo(length.dtype).eps * length  # and no rounding
        return along(grads, rho, torch.where(usable & is_way, distance, torch.nan))

    def state_dict(self) -> dict[str, Any]:
        """Return m."""
        return self._mean.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take m back."""
        self._mean.load_state_dict(state)
