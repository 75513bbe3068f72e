# SPDX-License-Identifier: Apache-2.0
"""The plan of an optimizer step: whether it perturbs, along which variant, how far."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hf_sam.config.sam_config import SAMConfig, gate_of, radius_of, variant_of
from hf_sam.gate import make_test
from hf_sam.radius.schedules import AUTO, Constant
from hf_sam.step_context import StepContext
from hf_sam.variants import Length, LengthOf, Regulariser

PARTS = ("variant", "radius", "gate")


class StepPlan(NamedTuple):
    """What one optimizer step does, decided before its first pass.

    Attributes:
        passes: "two"; "one" at weights perturbed beforehand; "plain"; or "reuse": plain, and then the variant changes
            the gradient by what it remembers.
        rho: the radius, or a regulariser's strength.
        context: where in the run the step is.
    """

    passes: Literal["two", "one", "plain", "reuse"]
    rho: Length
    context: StepContext


class StepPlanner:
    """The parts that `config` names, and what they remember. One for a run.

    Args:
        config: the settings; its variant must not be "none".

    Attributes:
        config: the settings.
        variant: which way.
        radius: how far.
        gate: which steps.
        test: what decides after the clean pass, or None.
        every_step: the plan of every step, where all are alike; None where it depends on the step.
        at_work: makes the context around each pass that a variant which acts in the model's forward needs.
        needs_loss_scale: whether the scale of the loss makes a difference; to ask for it waits for the device.
    """

    def __init__(self, config: SAMConfig) -> None:
        self.config = config
        self.variant = variant_of(config)
        self.radius = radius_of(config)
        self.gate = gate_of(config, self.variant)
        self.test = make_test(
            config.sam_gate, config.sam_gate_kwargs if isinstance(config.sam_gate_kwargs, dict) else None
        )
        self._asked_zero = config.rho != AUTO and config.rho == 0
        self._conclude()

    def follow(self, config: SAMConfig) -> bool:
        """Take over settings that were changed in the middle of a run; parts that these do not concern go on.

        Returns:
            Whether the variant is a new one.
        """
        old, self.config = self.config, config
        new = StepPlanner(config)
        if any(getattr(old, name) != getattr(config, name) for name in ("rho", "rho_schedule", "rho_schedule_kwargs")):
            self.radius, self._asked_zero = new.radius, new._asked_zero
        if (old.sam_gate, old.sam_gate_kwargs) != (config.sam_gate, config.sam_gate_kwargs):
            self.test = new.test
        self.gate = new.gate
        turned = (old.sam_variant, old.sam_variant_kwargs) != (config.sam_variant, config.sam_variant_kwargs)
        if turned:
            self.variant = new.variant
        if turned and old.rho == config.rho == AUTO:  # in the new variant's units; what it knows of the losses stays
            new.radius.load_state_dict(self.radius.state_dict())
            self.radius = new.radius
        self._conclude()
        return turned

    def _conclude(self) -> None:
        """Note what follows from the parts, so that no step has to ask them again."""
        self.needs_loss_scale = self.radius.uses_loss_scale or self.variant.uses_loss_scale or self.test is not None
        alike = self.gate.always and self.variant.every == 1 and self.variant.passes == "two" and self.test is None
        self.at_work = self.variant.at_work if isinstance(self.variant, Regulariser) else nullcontext
        self.every_step = None
        if alike and type(self.radius) is Constant and (self.radius.rho > 0 or self._asked_zero):
            self.every_step = StepPlan("two", self.radius.rho, StepContext())

    def read_loss_scale(self, trainer: Any) -> None:
        """Tell the variant by what losses are multiplied in this step, where a gradient scaler does so."""
        scaler = getattr(trainer.accelerator, "scaler", None)
        if scaler is not None:  # its get_scale() would wait for the device
            self.variant.loss_scale = scaler.scale(torch.ones((), device=trainer.args.device))

    def plan(self, context: StepContext) -> StepPlan:
        """Decide what the step at `context` does."""
        self.radius.note(context)
        if not self.gate.in_time(context):
            return StepPlan("plain", 0.0, context)
        rho = self.radius.at(context)
        # A schedule's zero is a plain step. A rho of zero that was asked for is measured with both passes.
        if not isinstance(rho, Tensor) and rho == 0 and not self._asked_zero:
            return StepPlan("plain", 0.0, context)
        if not self.gate.in_turn(context):
            return StepPlan("plain", 0.0, context)
        if context.step % self.variant.every:
            return StepPlan("reuse", rho, context)
        return StepPlan(self.variant.passes, rho, context)

    def length(self, plan: StepPlan, parts: float = 1) -> Length | LengthOf:
        """Return the radius of a planned step, or what computes it from the clean gradient.

        Args:
            plan: of the step.
            parts: the number of micro-batches whose gradients add up to the step's, where each has a perturbation of
                its own: the gradient of one is then that of a part of the loss.
        """
        if not self.radius.needs_gradient:
            return plan.rho
        radius, scale = self.radius, self.variant.loss_scale / parts
        return lambda params, grads: radius.from_gradient(params, grads, scale)

    def state_dict(self) -> dict[str, Any]:
        """Return what the parts remember, by names like "radius.rho"."""
        return {f"{part}.{name}": value for part, owner in self._owners() for name, value in owner.state_dict().items()}

    def load_state_dict(self, state: dict[str, Any], parts: tuple[str, ...] = PARTS) -> None:
        """Take back what `state_dict` returned.

        Args:
            state: what was saved.
            parts: which parts take theirs; the others start afresh.

        Raises:
            ValueError: if a part cannot take its state.
        """
        for part, owner in self._owners():
            if part in parts:
                owner.load_state_dict({n.split(".", 1)[1]: v for n, v in state.items() if n.startswith(f"{part}.")})
                state = {n: v for n, v in state.items() if not n.startswith(f"{part}.")}
        foreign = [name for name in state if name.split(".", 1)[0] not in PARTS or name.split(".", 1)[0] in parts]
        if foreign:
            raise ValueError(f"the state holds {sorted(foreign)}, which nothing here keeps")

    def _owners(self) -> list[tuple[str, Any]]:
        owners = [("variant", self.variant), ("radius", self.radius), ("gate", self.test)]
        return [(part, owner) for part, owner in owners if owner is not None]


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, each of which has to call this."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
        return values / torch.distributed.get_world_size()
    return values
