# SPDX-License-Identifier: Apache-2.0
"""Engines as a training step sees them: their parameters, their two passes, and who adds gradients up."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hf_sam.engines.fsdp1 import flat_copies, fsdp1_modules
from hf_sam.engines.gradient_sync import GradientSync
from hf_sam.step.replay import devices_of
from hf_sam.step.two_pass import two_pass_step
from hf_sam.vectors.shards import as_shards, is_dtensor


class Engine:
    """One process with whole weights, where two passes run as the Trainer runs one. Others override what differs.

    Args:
        model: as the training step gets it, wrapped by its engine.
        accelerator: accelerate's.

    Attributes:
        model: the same.
        devices: of the parameters.
        sync: what switches the reduction of gradients over processes; None where there is nothing to switch.
        relists: whether the parameters may be other objects at the next step.
    """

    sync: GradientSync | None = None
    relists = False
    deferred_step: Any = staticmethod(nullcontext)
    """Context of a training step; keeps engines that step in `backward` from stepping before the weights are back."""
    two_pass_step: Any = staticmethod(two_pass_step)
    """As `hf_sam.step.two_pass.two_pass_step`."""

    def __init__(self, model: nn.Module, accelerator: Any) -> None:
        self.model, self.accelerator = model, accelerator
        self.devices = devices_of(model.parameters())

    @classmethod
    def runs(cls, model: nn.Module, optimizer: Any) -> bool:
        """Return whether this is the engine of `model`."""
        del model, optimizer
        return True

    def parameters(self, optimizer: Any) -> list[Tensor]:
        """Return the distinct parameters of the model, and those that only the optimizer knows (of a loss, say)."""
        return _distinct([*self.model.parameters(), *_in_groups(optimizer)])

    def as_shards(self, params: list[Tensor]) -> list[Tensor]:
        """Return some of the parameters as `Shards`, where they are spread over processes."""
        return params


class ReplicatedEngine(Engine):
    """DDP: every process holds all weights, so that it can climb on its own."""

    def __init__(self, model: nn.Module, accelerator: Any) -> None:
        super().__init__(model, accelerator)
        self.sync = GradientSync(model, accelerator.gradient_state)

    @classmethod
    def runs(cls, model: nn.Module, optimizer: Any) -> bool:
        """Return whether part of the model is replicated."""
        del optimizer
        return any(isinstance(m, DistributedDataParallel) for m in model.modules())


class ShardedEngine(ReplicatedEngine):
    """FSDP and tensor parallelism: the weights are spread over the processes, which climb together."""

    relists = True

    @classmethod
    def runs(cls, model: nn.Module, optimizer: Any) -> bool:
        """Return whether a parameter of the model or the optimizer is a shard."""
        known = (*model.parameters(), *_in_groups(optimizer))
        return any(is_dtensor(p) for p in known) or bool(fsdp1_modules(model))

    def parameters(self, optimizer: Any) -> list[Tensor]:
        """Return the distinct parameters, in the optimizer's order where that has shards.

        After an evaluation FSDP2's model has others, those gathered: they are sharded again first, and the optimizer's
        order stays the same.
        """
        if self.sync is not None:
            self.sync.reshard()
        groups = _in_groups(optimizer)
        if any(is_dtensor(p) for p in groups):
            return _distinct([*groups, *self.model.parameters()])
        return super().parameters(optimizer)

    def as_shards(self, params: list[Tensor]) -> list[Tensor]:
        """Return some of the parameters as `Shards`, if one of them is spread over processes."""
        return as_shards(params, flat_copies(self.model))


def _in_groups(optimizer: Any) -> list[Tensor]:
    groups = getattr(optimizer, "param_groups", None) or []
    return [p for group in groups for p in group["params"]]


def _distinct(params: list[Tensor]) -> list[Tensor]:
    return list({id(p): p for p in params}.values())
