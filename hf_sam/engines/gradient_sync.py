# SPDX-License-Identifier: Apache-2.0
"""Switches that say whether the next backward pass adds gradients up over the processes.

With gradient accumulation a Trainer turns the reduction off for all micro-batches of a window but the last. Each pass
of a SAM step needs a mode of its own, forward included: DDP prepares its reduction in the forward pass.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hf_sam.engines.fsdp1 import SYNC_SWITCH, fsdp1_modules

Mode = Sequence[Any]


class GradientSync:
    """The switches of a model's engines: DDP, FSDP1 and FSDP2 know several modes, a bare model none.

    Args:
        model: as the training step gets it, wrapped by its engine.
        flag: object whose `sync_gradients` says that this is a window's last micro-batch (accelerate's GradientState);
            hooks of adapters on a sharded base act on it.
    """

    def __init__(self, model: nn.Module, flag: Any = None) -> None:
        self.model = model
        self._replicated = [(m, "require_backward_grad_sync") for m in _modules(model, DistributedDataParallel)]
        self._sharded = [(m, SYNC_SWITCH) for m in fsdp1_modules(model)]
        self._gathering = _fsdp2_modules(model)
        for group in _fsdp2_groups(model):
            self._sharded += [(group, "reduce_grads"), (group, "all_reduce_grads")]
        self._flag = [(flag, "sync_gradients")] if flag is not None else []

    @property
    def replicated(self) -> bool:
        """Whether every process holds all weights, so that it can climb on its own (DDP)."""
        return bool(self._replicated)

    @property
    def sharded(self) -> bool:
        """Whether the weights are spread over the processes, so that all have to climb together (FSDP)."""
        return bool(self._sharded)

    @property
    def averages(self) -> bool:
        """Whether the next backward pass averages replicated gradients over the processes."""
        return any(getattr(owner, name) for owner, name in self._replicated)

    def mode(self) -> Mode:
        """Return how every switch is set."""
        return [getattr(owner, name) for owner, name in self._switches()]

    def set_mode(self, mode: Mode) -> None:
        """Set every switch as it was when `mode` was taken."""
        for (owner, name), value in zip(self._switches(), mode, strict=True):
            setattr(owner, name, value)

    @contextmanager
    def each_process_alone(self) -> Iterator[None]:
        """Leave the gradients of replicated weights on the process that computed them, inside."""
        mode = self.mode()
        for owner, name in self._replicated:
            setattr(owner, name, False)
        try:
            yield
        finally:
            self.set_mode(mode)

    @contextmanager
    def all_together(self) -> Iterator[None]:
        """Reduce the gradients of sharded weights at every backward pass, inside."""
        mode = self.mode()
        for owner, name in (*self._sharded, *self._flag):
            setattr(owner, name, True)
        try:
            yield
        finally:
            self.set_mode(mode)

    def reshard(self) -> None:
        """Let go of weights that are still gathered (FSDP2's root keeps its own after an evaluation).

        A perturbation moves the shards; a forward pass would not see it.
        """
        for module in self._gathering:
            module.reshard()

    def _switches(self) -> list[tuple[Any, str]]:
        return [*self._replicated, *self._sharded, *self._flag]


def _modules(model: nn.Module, cls: type[nn.Module]) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, cls)]


def _fsdp2_groups(model: nn.Module) -> list[Any]:
    """Return the groups of parameters that `fully_shard` reduces together.

    Their switches have public setters but no public getters, and a replay has to know how they were set.
    """
    groups = []
    for module in _fsdp2_modules(model):
        state = module._get_fsdp_state()
        several = getattr(state, "_fsdp_param_groups", None)  # torch before 2.12 has at most one a module
        groups += [group for group in (several or [state._fsdp_param_group]) if group is not None]
    return groups


def _fsdp2_modules(model: nn.Module) -> list[Any]:
    """Return the modules that `fully_shard` was called on."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return [m for m in model.modules() if isinstance(m, fsdp.FSDPModule)] if fsdp is not None else []
