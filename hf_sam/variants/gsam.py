# SPDX-License-Identifier: Apache-2.0
"""GSAM: step along the perturbed gradient, less the part of the clean one that is orthogonal to it."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_sam._checks import check_number
from hf_sam.variants.base import Length, Variant
from hf_sam.vectors.flat import write_
from hf_sam.vectors.vectors import Ascent, along, as_vector, chunks, contiguous_as, dot, global_norm, is_finite, sums


class GSAM(Variant):
    """Surrogate Gap Guided Sharpness-Aware Minimization (Zhuang et al. 2022, algorithm 1).

    epsilon = rho * g / ||g||_2 as in SAM; then the optimizer's gradient is

        h - alpha * g_perp,   g_perp = g - <g, h> / <h, h> * h

    with both inner products over all parameters: the gap L(w + epsilon) - L(w) shrinks, and to first order
    L(w + epsilon) stays.
    The paper ties rho to the learning rate (`rho_schedule="lr"`).

    Args:
        alpha: how much of g_perp is taken off, >= 0; 0 is SAM. The paper has 0.4 to 1 for vision transformers, 0.01 for
            ResNets.

    Raises:
        TypeError: if alpha is no number.
        ValueError: if it is out of range.
    """

    title = "GSAM"
    combines = True
    citation = """@inproceedings{zhuang2022surrogate,
    title     = {Surrogate Gap Minimization Improves Sharpness-Aware Training},
    author    = {Juntang Zhuang and Boqing Gong and Liangzhe Yuan and Yin Cui and Hartwig Adam and Nicha C. Dvornek
                 and Sekhar Tatikonda and James S. Duncan and Ting Liu},
    booktitle = {International Conference on Learning Representations},
    year      = {2022},
    url       = {https://arxiv.org/abs/2203.08065}
}"""

    def __init__(self, *, alpha: float = 0.4) -> None:
        self.alpha = check_number("GSAM", "alpha", alpha, least=0)
        self._params: list[Tensor] | None = None

    def ascend(self, params: list[Tensor], grads: list[Tensor], rho: Length) -> Ascent:
        """Return rho * g / ||g||."""
        self._params = params
        return along(grads, rho, global_norm(grads, params))

    @torch.no_grad()
    def combine(self, clean: list[Tensor], perturbed: list[Tensor]) -> list[Tensor]:
        """Return h - alpha * g_perp, in the memory of h; h as it is where the factor of h is not a number."""
        params, self._params = self._params or clean, None
        g, h = contiguous_as(params, clean), contiguous_as(params, perturbed)
        # <h, h> is computed as <g, h> is, so that where h = g their ratio is 1.
        pairs = (([as_vector(a)], [as_vector(b)]) for _, _, a, b in chunks(params, g, h))
        products = [(dot(a, b), dot(b, list(b))) for a, b in pairs]
        gh, hh = sums([list(column) for column in zip(*products, strict=True)], params)
        along_h = gh / hh
        usable = is_finite(along_h)
        for _, _, g_piece, h_piece in chunks(params, g, h):
            h_all = as_vector(h_piece)
            g_perp = torch.addcmul(as_vector(g_piece).to(along_h.dtype), h_all.to(along_h.dtype), along_h, value=-1)
            write_(h_piece, h_all.sub_(torch.where(usable, g_perp.mul_(self.alpha), 0.0)))
        return h
