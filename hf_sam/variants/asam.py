# SPDX-License-Identifier: Apache-2.0
"""Which way does ASAM climb? Along the gradient seen through the size of each weight."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hf_sam.variants.base import Length, Variant
from hf_sam.vectors.vectors import Ascent, along, chunks, contiguous_as, dot, sum_of

SCALED = ("matrices", "all", "named_weight")


class ASAM(Variant):
    """Adaptive Sharpness-Aware Minimization (Kwon et al. 2021, eq. 8 with p = 2 and T_w = diag(|w| + eta)).

    epsilon = rho * T^2 g / ||T g||_2, so a rescaling of the weights that leaves the function alone leaves the
    sharpness alone. Radii are about ten times those of SAM: the paper uses 0.5 to 1.0. Other implementations mean
    something else by the same name; the options reach them:

    | convention | options |
    |---|---|
    | the authors' formula (default) | `eta=0.01, scaled="matrices"` |
    | the authors' code, by parameter name | `eta=0.01, scaled="named_weight"` |
    | davda54/sam and pytorch-optimizer `adaptive=True` | `eta=0, scaled="all"` |
    | the JAX code of GSAM (big_vision) | `eta=0, scaled="all", power=1, weighted_norm=False` |

    Args:
        eta: added to |w| so that small weights can move, >= 0.
        scaled: which parameters have T = |w| + eta; the others have T = 1. "matrices": those with two or more
            dimensions. "all": every one. "named_weight": those with "weight" in their name (needs names: a model, or
            `parameters=model.named_parameters()`).
        power: exponent of T in epsilon, 1 or 2.
        weighted_norm: divide by ||T g|| (True) or by ||g|| (False).

    Raises:
        ValueError: if an option is out of range.
    """

    title = "ASAM"
    default_rho = 0.5
    scale_free = True
    recovers_gradient = True
    citation = """@inproceedings{kwon2021asam,
    title     = {{ASAM}: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks},
    author    = {Jungmin Kwon and Jeongseop Kim and Hyunseo Park and In Kwon Choi},
    booktitle = {International Conference on Machine Learning},
    year      = {2021},
    url       = {https://arxiv.org/abs/2102.11600}
}"""

    def __init__(
        self, *, eta: float = 0.01, scaled: str = "matrices", power: int = 2, weighted_norm: bool = True
    ) -> None:
        if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 0 <= eta < float("inf"):
            raise ValueError(f"`ASAM(eta=...)` must be a finite number >= 0, got {eta!r}.")
        if scaled not in SCALED:
            raise ValueError(f"`ASAM(scaled=...)` must be one of {', '.join(SCALED)}, got {scaled!r}.")
        if power not in (1, 2) or isinstance(power, bool):
            raise ValueError(f"`ASAM(power=...)` must be 1 or 2, got {power!r}.")
        if not isinstance(weighted_norm, bool):
            raise ValueError(f"`ASAM(weighted_norm=...)` must be true or false, got {weighted_norm!r}.")
        self.eta, self.scaled, self.power, self.weighted_norm = eta, scaled, power, weighted_norm
        self._named_weight: dict[int, bool] | None = None

    def prepare(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Remember which parameters have "weight" in their name."""
        self._named_weight = {id(p): "weight" in name for name, p in named_parameters}

    @torch.no_grad()
    def ascend(self, params: list[Tensor], grads: list[Tensor], rho: Length) -> Ascent:
        """Return rho * T^2 g / ||T g||, or as the options say."""
        grads = contiguous_as(params, grads)
        squares = []
        for owners, w, g in chunks(params, grads):
            scaled = [(g_i, w_i) for g_i, w_i, yes in zip(g, w, self._is_scaled(owners), strict=True) if yes]
            if not self.weighted_norm:
                squares.append(dot(g, g))
            for g_i, w_i in scaled:
                g_i.mul_(self._scale(w_i))
            if self.weighted_norm:
                squares.append(dot(g, g))
            if self.power == 2:
                for g_i, w_i in scaled:
                    g_i.mul_(self._scale(w_i))
        return along(grads, rho, sum_of(squares, params).sqrt())

    @torch.no_grad()
    def recover_gradient_(self, params: list[Tensor], w: list[Tensor], epsilon: list[Tensor]) -> bool:
        """Divide epsilon by T^power. Where T is zero (eta = 0, w = 0) nothing can move, and zero stays."""
        for e, w_i, is_scaled in zip(epsilon, w, self._is_scaled(params), strict=True):
            if is_scaled:
                e.div_(self._scale(w_i).pow_(self.power))
                if self.eta == 0:
                    e.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        return True

    def _scale(self, w: Tensor) -> Tensor:
        """Return the diagonal of T_w for one scaled parameter."""
        return w.detach().abs().add_(self.eta)

    def _is_scaled(self, params: list[Tensor]) -> list[bool]:
        if self.scaled == "all":
            return [True] * len(params)
        if self.scaled == "matrices":
            return [w.dim() >= 2 for w in params]
        names = self._named_weight
        if names is None or any(id(w) not in names for w in params):
            raise ValueError(
                '`ASAM(scaled="named_weight")` needs the parameters\' names: pass `model.named_parameters()`, '
                'or use scaled="matrices".'
            )
        return [names[id(w)] for w in params]
