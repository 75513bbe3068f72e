# SPDX-License-Identifier: Apache-2.0
"""ASAM: climb along the gradient seen through the size of each weight."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_sam._checks import check_number
from hf_sam.variants.base import Length, Variant
from hf_sam.vectors.flat import write_
from hf_sam.vectors.vectors import Ascent, along, as_vector, chunks, contiguous_as, dot, sum_of

ETA = 0.01
"""Added to |w|, so that weights of zero can move."""


def is_scaled(param: Tensor) -> bool:
    """Return whether T_w is |w| + eta for a parameter (two or more dimensions) and not 1 (biases, normalisation)."""
    return param.dim() >= 2


def scales_of(w: list[Tensor], eta: float = ETA, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return the diagonal of T_w, |w| + eta, for scaled parameters or pieces of them, in new memory and few launches.

    Args:
        w: the weights, any number of tensors.
        eta: added to |w|, >= 0.
        dtype: in which eta is added, and of the result; that of each tensor by default.

    Returns:
        One tensor for each, of its shape.
    """
    if not w:
        return []
    sizes = [size if dtype is None else size.to(dtype) for size in torch._foreach_abs([t.detach() for t in w])]
    torch._foreach_add_(sizes, eta)
    return sizes


class ASAM(Variant):
    """Adaptive Sharpness-Aware Minimization (Kwon et al. 2021, eq. 8 with p = 2 and T_w = diag(|w| + eta)).

    epsilon = rho * T^2 g / ||T g||_2, with T = |w| + eta for parameters of two or more dimensions and T = 1 for the
    others. A rescaling of the weights that leaves the function alone leaves the sharpness alone, too. Radii are about
    ten times those of SAM: the paper uses 0.5 to 1.0. Other implementations mean something else by the same name:
    `adaptive=True` of davda54/sam and pytorch-optimizer has T = |w| for all parameters.

    Args:
        eta: added to |w| so that small weights can move, >= 0.

    Raises:
        TypeError: if eta is no number.
        ValueError: if it is out of range.
    """

    title = "ASAM"
    auto_by_default = True
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

    def __init__(self, *, eta: float = ETA) -> None:
        self.eta = check_number("ASAM", "eta", eta, least=0)

    def scales(self, param: Tensor) -> bool:
        """Return whether T is |w| + eta for `param`, and not 1."""
        return is_scaled(param)

    @torch.no_grad()
    def ascend(self, params: list[Tensor], grads: list[Tensor], rho: Length) -> Ascent:
        """Return rho * T^2 g / ||T g||."""
        grads, squares = contiguous_as(params, grads), []
        for owners, w, g in chunks(params, grads):
            scaled = [i for i, p in enumerate(owners) if self.scales(p)]
            g_scaled, t = [g[i] for i in scaled], scales_of([w[i] for i in scaled], self.eta)
            if t:
                torch._foreach_mul_(g_scaled, t)
            squares.append(dot(g, g))
            if t:
                torch._foreach_mul_(g_scaled, t)
        return along(grads, rho, sum_of(squares, params).sqrt())

    @torch.no_grad()
    def recover_gradient_(self, params: list[Tensor], w: list[Tensor], epsilon: list[Tensor]) -> bool:
        """Divide epsilon by T^2. Where T is zero (eta = 0, w = 0) nothing can move, and zero stays."""
        scaled = [i for i, p in enumerate(params) if self.scales(p)]
        e, t = [epsilon[i] for i in scaled], scales_of([w[i] for i in scaled], self.eta)
        if t:
            torch._foreach_mul_(t, t)
            torch._foreach_div_(e, t)
        if t and self.eta == 0:
            write_(e, as_vector(e).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0))
        return True
