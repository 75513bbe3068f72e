# SPDX-License-Identifier: Apache-2.0
"""SAM: climb along the gradient."""

from __future__ import annotations

from torch import Tensor

from hf_sam.variants.base import Length, Variant
from hf_sam.vectors.vectors import Ascent, along, global_norm


class SAM(Variant):
    """Sharpness-Aware Minimization (Foret et al. 2021, eq. 2 with p = 2).

    epsilon = rho * g / ||g||_2, one norm over all parameters.
    """

    title = "SAM"
    auto_by_default = True
    recovers_gradient = True
    citation = """@inproceedings{foret2021sharpnessaware,
    title     = {Sharpness-Aware Minimization for Efficiently Improving Generalization},
    author    = {Pierre Foret and Ariel Kleiner and Hossein Mobahi and Behnam Neyshabur},
    booktitle = {International Conference on Learning Representations},
    year      = {2021},
    url       = {https://arxiv.org/abs/2010.01412}
}"""

    def ascend(self, params: list[Tensor], grads: list[Tensor], rho: Length) -> Ascent:
        """Return rho * g / ||g||."""
        return along(grads, rho, global_norm(grads, params))

    def recover_gradient_(self, params: list[Tensor], w: list[Tensor], epsilon: list[Tensor]) -> bool:
        """Leave epsilon as it is: it is parallel to the gradient."""
        del params, w, epsilon
        return False
