# SPDX-License-Identifier: Apache-2.0
"""What must a direction answer so that the step can climb along it?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor

from hf_sam.numerics import Ascent


class Variant(ABC):
    """A direction: which way epsilon points.

    A subclass fills in `ascend`; the constructor's keyword arguments are its options. Instances may keep state between
    steps; then `state_dict` and `load_state_dict` say what a resume needs.

    Attributes:
        title: name for model cards and messages.
        citation: BibTeX of the paper.
        combines: whether `combine` mixes the two gradients; the step then keeps a copy of the clean one.
        recovers_gradient: whether `recover_gradient_` turns epsilon back into the clean gradient's direction. Where it
            does, the step measures `sam/grad_cosine` without keeping a copy of the clean gradient.
    """

    title: ClassVar[str]
    citation: ClassVar[str]
    combines: ClassVar[bool] = False
    recovers_gradient: ClassVar[bool] = False

    @abstractmethod
    def ascend(self, params: list[Tensor], grads: list[Tensor], rho: float) -> Ascent:
        """Return epsilon at `params`.

        Args:
            params: the parameters at w, not to be changed.
            grads: the clean gradient g, one tensor per parameter, possibly loss-scaled (so the result must not depend
                on the length of g). The callee owns these tensors and may overwrite them or return them.
            rho: the radius, >= 0.

        Returns:
            Where to climb (see `hf_sam.numerics.along`); nowhere when the gradient is zero or not finite.
        """

    def combine(self, clean: list[Tensor], perturbed: list[Tensor]) -> list[Tensor]:
        """Return the gradient for the optimizer from g and h; h itself unless a subclass sets `combines`."""
        del clean
        return perturbed

    def recover_gradient_(self, params: list[Tensor], w: list[Tensor], epsilon: list[Tensor]) -> bool:
        """Overwrite `epsilon`, as it was realised, with a vector parallel to the clean gradient.

        Args:
            params: the parameters concerned, which may be seen in pieces.
            w: their weights, or the same pieces of them, before they moved.
            epsilon: what was added to `w`.

        Returns:
            Whether `epsilon` had to be changed.
        """
        raise NotImplementedError(f"{type(self).__name__} does not set recovers_gradient.")

    def prepare(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Learn the parameters' names before the first step, for directions that depend on them."""
        del named_parameters

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs: tensors, numbers, strings and booleans by name. Empty for a stateless variant."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned; tensors arrive on the CPU.

        Raises:
            ValueError: if `state` is not this variant's.
        """
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, got {sorted(state)}.")
