# SPDX-License-Identifier: Apache-2.0
"""The base classes of variants, and the ascent that a variant returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from hf_sam.step_context import StepContext
from hf_sam.vectors.vectors import Ascent

Length = float | Tensor
"""A radius: a number, or a 0-dim tensor on the parameters' device where it was computed there."""
LengthOf = Callable[[list[Tensor], list[Tensor]], Tensor]
"""A radius that depends on the parameters that move and on the vectors along which they do, neither to be changed."""


class Variant(ABC):
    """A variant of SAM: it says which way epsilon points.

    A subclass fills in `ascend`; the constructor's keyword arguments are its options. Instances may keep state between
    steps; then `state_dict` and `load_state_dict` say what a resume needs. A variant that knows epsilon before any
    gradient is a subclass of `OnePass`; one that changes the weights without perturbing them, of `Regulariser`.

    Attributes:
        title: name for model cards and messages.
        citation: BibTeX of the paper.
        default_rho: the radius where the user gives none, or of a schedule.
        passes: how many passes over the data a step takes: "two", "one" at perturbed weights, or one "plain" one.
        combines: whether `combine` mixes the two gradients; the step then keeps a copy of the clean one.
        recovers_gradient: whether `recover_gradient_` makes of epsilon a vector parallel to the clean gradient. The
            step then measures `sam/grad_cosine` without a copy of the clean gradient, which it has anyway where
            `combines`.
        remembers: whether it keeps state from step to step. All processes then have to see the same gradients.
        auto_by_default: whether `rho="auto"` is what it takes where the user gives neither a rho nor a schedule.
        adapts_radius: whether rho is a length that `rho="auto"` can find.
        auto_strength: what `rho="auto"` aims for, in units of the weights along the direction.
        scale_free: whether rho is measured in units of the weights already, as ASAM's is.
        filters: whether a choice of parameters (`sam_parameters`) makes sense for it.
        off_in_warmup: whether it waits for the learning rate's warm-up to end, unless the user says otherwise.
        every: steps from one perturbation to the next; `reuse_` is called on those between. An option of LookSAM.
        uses_loss_scale: whether `loss_scale` makes a difference to it.
        loss_scale: what the gradients it sees are multiplied by (a gradient scaler's factor); set before each step.
    """

    title: ClassVar[str]
    citation: ClassVar[str]
    default_rho: ClassVar[float] = 0.05
    passes: ClassVar[Literal["two", "one", "plain"]] = "two"
    combines: ClassVar[bool] = False
    recovers_gradient: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    auto_by_default: ClassVar[bool] = False
    adapts_radius: ClassVar[bool] = True
    auto_strength: ClassVar[float] = 0.5
    scale_free: bool = False
    filters: ClassVar[bool] = True
    off_in_warmup: ClassVar[bool] = False
    uses_loss_scale: ClassVar[bool] = False
    every: int = 1
    loss_scale: Length = 1.0

    @abstractmethod
    def ascend(self, params: list[Tensor], grads: list[Tensor], rho: Length) -> Ascent:
        """Return epsilon at `params`.

        Args:
            params: the parameters at w, not to be changed.
            grads: the clean gradient g, one tensor per parameter, possibly loss-scaled (so the result must not depend
                on the length of g). They may be overwritten and returned.
            rho: the radius, >= 0.

        Returns:
            Where to climb (see `hf_sam.vectors.vectors.along`); nowhere when the gradient is zero or not finite.
        """

    def combine(self, clean: list[Tensor], perturbed: list[Tensor]) -> list[Tensor]:
        """Return the gradient for the optimizer from g and h; h itself unless a subclass sets `combines`.

        They belong to the `params` of the last `ascend`, in this order. Inner products of shards need these (see
        `hf_sam.vectors.vectors.global_dot`).
        """
        del clean
        return perturbed

    def recover_gradient_(self, params: list[Tensor], w: list[Tensor], epsilon: list[Tensor]) -> bool:
        """Overwrite `epsilon`, as it was realised, with a vector parallel to the clean gradient, where it is not one.

        Called only where `recovers_gradient` is set.

        Args:
            params: the parameters concerned, which may be seen in pieces.
            w: their weights, or the same pieces of them, before they moved.
            epsilon: what was added to `w`.

        Returns:
            Whether `epsilon` had to be changed.
        """
        raise NotImplementedError(f"{type(self).__name__} does not set recovers_gradient.")

    def reuse_(self, params: list[Tensor], grads: list[Tensor]) -> None:
        """Change the gradient of a step without a perturbation in place, where `every` is above 1.

        Args:
            params: the parameters at w.
            grads: their gradients g, for the optimizer.
        """
        del params, grads

    def prepare(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Learn the parameters' names before the first step, for variants that depend on them."""
        del named_parameters

    def prepare_model(self, model: nn.Module) -> None:
        """Learn the modules before the first step, for methods that depend on them (adapters).

        Raises:
            ValueError: if the model is not one the method is for.
        """
        del model

    def check_optimizer(self, optimizer: Any, params: list[Tensor]) -> None:
        """Raise for an optimizer that the variant cannot work with; called before the first step of a run.

        Args:
            optimizer: the user's, or a wrapper around it; None where there is none.
            params: the parameters that are to move.

        Raises:
            ValueError: with the ways out.
        """
        del optimizer, params

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


class OnePass(Variant):
    """A variant that knows epsilon before the forward pass: a step is one pass, at w + epsilon.

    The clean loss is not computed; the loss reported is L(w + epsilon).
    """

    passes = "one"

    @abstractmethod
    def direction_before_pass(
        self, params: list[Tensor], rho: Length | LengthOf, context: StepContext
    ) -> tuple[list[Tensor], Ascent] | None:
        """Return the tensors that move and where they climb to, before the pass; None for a step at w.

        Called for every micro-batch of a window; it must return the same each time.

        Args:
            params: the trained parameters that `sam_parameters` chooses, at w, not to be changed.
            rho: the radius, >= 0; or, only where `adapts_radius`, a function that computes it from the tensors that
                move and their direction.
            context: where in the run this is, with the optimizer.

        Returns:
            The tensors to move (a sublist of `params`, of their kind, see `same_kind`; or others, such as frozen
            weights), and the ascent, whose direction may be overwritten unless it is `lent`.
        """

    def ways_before_pass(
        self, params: list[Tensor], rho: Length | LengthOf, context: StepContext
    ) -> Iterator[tuple[list[Tensor], Ascent]]:
        """Yield what `direction_before_pass` returns, in parts of which each moves before the next one is asked for.

        A variant whose direction is as large as the weights overrides it to hold a part of it at a time. The parts are
        usable or not together.
        """
        way = self.direction_before_pass(params, rho, context)
        if way is not None:
            yield way

    def ascend(self, params: list[Tensor], grads: list[Tensor], rho: Length) -> Ascent:
        """Raise, as a step of one pass has no clean gradient."""
        raise NotImplementedError(f"{type(self).__name__} climbs before there is a gradient.")


class Regulariser(Variant):
    """A variant that changes the weights a little at each step, as weight decay does, in one plain pass."""

    passes = "plain"
    adapts_radius = False
    filters = False

    @abstractmethod
    def adjust_(self, strength: Length, context: StepContext) -> None:
        """Change the weights in place, after backward and before the optimizer's step.

        They stay as they are if a gradient is not finite.

        Args:
            strength: the coefficient (`rho` and its schedule).
            context: where in the run this is, with the learning rate of the coming step.
        """

    def report(self) -> dict[str, Tensor]:
        """Return what the last `adjust_` did, as numbers on the device by name, for the logs. The same names always."""
        return {}

    def hide(self) -> None:
        """Keep what acts in the model's forward from acting but inside of `at_work`."""

    def at_work(self) -> AbstractContextManager[None]:
        """Return a context around each pass of a trainer, in which nothing is hidden."""
        return nullcontext()

    def ascend(self, params: list[Tensor], grads: list[Tensor], rho: Length) -> Ascent:
        """Raise, as nothing is perturbed."""
        raise NotImplementedError(f"{type(self).__name__} does not perturb.")
