# SPDX-License-Identifier: Apache-2.0
"""LookSAM: reuse between two perturbations the part of the perturbed gradient that is slow to change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hf_sam._checks import check_count, check_number
from hf_sam.variants.base import Length, Variant
from hf_sam.variants.per_parameter_state import PerParameterState
from hf_sam.vectors.flat import write_
from hf_sam.vectors.vectors import (
    Ascent,
    along,
    as_vector,
    chunks,
    contiguous_as,
    dot,
    global_norm,
    is_finite,
    restore_,
    sums,
)

ROUNDING = 8
"""Units in the last place of ||h||: a g_v that is not longer is rounding, not a direction."""


class LookSAM(Variant):
    """LookSAM (Liu et al. 2022, algorithm 1).

    Every k-th step is one of SAM and keeps g_v, the part of h that is orthogonal to g. The steps between add g_v to
    their gradient:

        g_v = h - <h, g> / <g, g> * g          g + alpha * ||g|| / ||g_v|| * g_v

    Norms and inner products are over all parameters with a gradient in the step. g_v is kept in at least float32, the
    memory of one more gradient, and saved with a checkpoint. g_v stays as it was if g is zero or not finite, or h is
    not finite. g_v is zero after a step with rho = 0. The length of the gradients, and so their loss scale, does not
    matter.

    Args:
        k: steps from one perturbation to the next, >= 1; 1 is SAM.
        alpha: how much of g_v the steps between take, >= 0. The paper has 0.7 for vision transformers; Becker et al.
            2024 found 0.1 to be the best on the same task.

    Raises:
        TypeError: if an option is no number.
        ValueError: if one is out of range.
    """

    title = "LookSAM"
    combines = True
    remembers = True
    citation = """@inproceedings{liu2022towards,
    title     = {Towards Efficient and Scalable Sharpness-Aware Minimization},
    author    = {Yong Liu and Siqi Mai and Xiangning Chen and Cho-Jui Hsieh and Yang You},
    booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
    year      = {2022},
    url       = {https://arxiv.org/abs/2203.02714}
}"""

    def __init__(self, *, k: int = 5, alpha: float = 0.1) -> None:
        self.every = check_count("LookSAM", "k", k)
        self.alpha = check_number("LookSAM", "alpha", alpha, least=0)
        self._orthogonal = PerParameterState("orthogonal")
        self._climb: tuple[list[Tensor], Tensor, Tensor] | None = None  # where, whether it could, whether it moved

    def prepare(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Learn the names under which g_v is saved."""
        self._orthogonal.prepare(named_parameters)

    def ascend(self, params: list[Tensor], grads: list[Tensor], rho: Length) -> Ascent:
        """Return rho * g / ||g||."""
        ascent = along(grads, rho, global_norm(grads, params))
        self._climb = params, ascent.usable, ascent.scale > 0
        return ascent

    @torch.no_grad()
    def combine(self, clean: list[Tensor], perturbed: list[Tensor]) -> list[Tensor]:
        """Keep g_v; return h.

        Raises:
            RuntimeError: if `ascend` was not called before.
        """
        if self._climb is None:
            raise RuntimeError("`LookSAM.combine` belongs to the `ascend` before it, of which there was none.")
        (params, usable, moved), self._climb = self._climb, None
        g, h, g_v = contiguous_as(params, clean), contiguous_as(params, perturbed), self._orthogonal.of(params)
        # <g, g> is computed as <g, h> is, so that where h = g their ratio is 1.
        pairs = (([as_vector(a)], [as_vector(b)]) for _, _, a, b in chunks(params, g, h))
        products = [(dot(a, b), dot(a, list(a)), dot(b, list(b))) for a, b in pairs]
        gh, gg, hh = sums([list(column) for column in zip(*products, strict=True)], params)
        along_g = gh / gg
        usable = usable & is_finite(along_g)
        for _, _, *piece in chunks(params, g, h, g_v):
            g_all, h_all, v_all = map(as_vector, piece)
            new = torch.addcmul(h_all.to(v_all.dtype), g_all.to(v_all.dtype), along_g, value=-1)
            write_(piece[-1], torch.where(usable, torch.where(moved, new, 0.0), v_all))
        is_noise = usable & (global_norm(g_v, params) <= ROUNDING * torch.finfo(hh.dtype).eps * hh.sqrt())
        torch._foreach_mul_(g_v, torch.where(is_noise, 0.0, 1.0))
        return perturbed

    @torch.no_grad()
    def reuse_(self, params: list[Tensor], grads: list[Tensor]) -> None:
        """Add alpha * ||g|| / ||g_v|| * g_v to g; leave g as it is while there is no g_v, or if g is not finite."""
        g_v = self._orthogonal.of(params)
        factor = self.alpha * global_norm(grads, params) / global_norm(g_v, params)
        taken_off = torch.where(is_finite(factor), -factor, 0.0)
        laid_out = contiguous_as(params, grads)
        for _, _, g, v in chunks(params, laid_out, g_v):
            write_(g, as_vector(g).addcmul_(as_vector(v), taken_off, value=-1))  # no -0.0 becomes 0.0 where g_v is
        copied = [(grad, copy) for grad, copy in zip(grads, laid_out, strict=True) if copy is not grad]
        restore_([grad for grad, _ in copied], [copy for _, copy in copied])

    def state_dict(self) -> dict[str, Any]:
        """Return g_v."""
        return self._orthogonal.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take g_v back."""
        self._orthogonal.load_state_dict(state)
