# SPDX-License-Identifier: Apache-2.0
"""How does one take a sharpness-aware step elsewhere? Each way on the same base optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import Trainer, TrainingArguments

from hf_sam import SAMConfig, SAMTrainer, sharpness_aware_grad

RHO = 0.05
LEARNING_RATE = 1e-4
Closure = Callable[[], Tensor]
"""Runs forward and backward and returns the loss."""


class Peer:
    """One way to take a step; `optimizer` is what is saved and loaded."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer: Optimizer = self.build(list(model.parameters()))

    def build(self, params: list[nn.Parameter]) -> Optimizer:
        """Return the optimizer that a user makes."""
        return AdamW(params, lr=LEARNING_RATE)

    def step(self, closure: Closure) -> None:
        """Take one step."""
        raise NotImplementedError

    def trainer(self, args: TrainingArguments, data: list[Any]) -> Trainer:
        """Return the Trainer that a user makes."""
        return Trainer(self.model, args, train_dataset=data, optimizers=(self.optimizer, None))


class TwoPlainPasses(Peer):
    """The floor: two gradients and one update, nothing between."""

    def step(self, closure: Closure) -> None:
        """Take one step."""
        for _ in range(2):
            self.optimizer.zero_grad()
            closure()
        self.optimizer.step()


class Ours(Peer):
    """`hf_sam.sharpness_aware_grad`, and `SAMTrainer`."""

    variant = "sam"

    def step(self, closure: Closure) -> None:
        """Take one step."""
        self.optimizer.zero_grad()
        sharpness_aware_grad(closure, self.model.parameters(), rho=RHO, variant=self.variant)
        self.optimizer.step()

    def trainer(self, args: TrainingArguments, data: list[Any]) -> Trainer:
        """Return the Trainer that a user makes."""
        return SAMTrainer(self.model, args, train_dataset=data, sam_config=SAMConfig(rho=RHO, sam_variant=self.variant))


class OursGSAM(Ours):
    """The same in GSAM's direction."""

    variant = "gsam"


class StoredCopy(Optimizer):
    """SAM as an optimizer around another, in the way of davda54/sam, written from its formula.

    A loop over the parameters, one norm of norms, w kept in the state under "old_p"; the base optimizer is not in the
    state that is saved.
    """

    def __init__(self, params: Iterable[nn.Parameter], base: type[Optimizer], rho: float, **settings: Any) -> None:
        super().__init__(params, {"rho": rho, **settings})
        self.base_optimizer = base(self.param_groups, **settings)

    @torch.no_grad()
    def first_step(self) -> None:
        """Climb."""
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.norm(torch.stack([p.grad.norm(p=2) for p in params]), p=2)
        for group in self.param_groups:
            scale = group["rho"] / (norm + 1e-12)
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old_p"] = p.clone()
                    p.add_(p.grad * scale)

    @torch.no_grad()
    def second_step(self) -> None:
        """Come back and update."""
        for group in self.param_groups:
            for p in group["params"]:
                if "old_p" in self.state[p]:
                    p.copy_(self.state[p]["old_p"])
        self.base_optimizer.step()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step; the first gradient is there already."""
        if closure is None:
            raise ValueError("step() needs a closure")
        self.first_step()
        self.zero_grad()
        with torch.enable_grad():
            closure()
        self.second_step()


class Davda(Peer):
    """davda54/sam's way."""

    def build(self, params: list[nn.Parameter]) -> Optimizer:
        """Return the optimizer that a user makes."""
        return StoredCopy(params, AdamW, RHO, lr=LEARNING_RATE)

    def step(self, closure: Closure) -> None:
        """Take one step."""
        self.optimizer.zero_grad()
        closure()
        self.optimizer.step(closure)  # type: ignore[arg-type]


class PytorchOptimizer(Davda):
    """pytorch-optimizer's SAM."""

    def build(self, params: list[nn.Parameter]) -> Optimizer:
        """Return the optimizer that a user makes."""
        from pytorch_optimizer import SAM

        made: Optimizer = SAM(params, AdamW, rho=RHO, lr=LEARNING_RATE)
        return made


class PytorchOptimizerGSAM(Peer):
    """pytorch-optimizer's GSAM, whose radius is constant."""

    def build(self, params: list[nn.Parameter]) -> Optimizer:
        """Return the optimizer that a user makes."""
        from pytorch_optimizer import GSAM
        from pytorch_optimizer.lr_scheduler.proportion import ProportionScheduler

        base = AdamW(params, lr=LEARNING_RATE)
        constant = torch.optim.lr_scheduler.ConstantLR(base, factor=1.0)
        radius = ProportionScheduler(constant, max_lr=LEARNING_RATE, max_value=RHO, min_value=RHO)
        made: Optimizer = GSAM(params, base_optimizer=base, model=self.model, rho_scheduler=radius)
        return made

    def step(self, closure: Closure) -> None:
        """Take one step."""

        def with_outputs() -> tuple[None, Tensor]:
            self.optimizer.zero_grad()
            with torch.enable_grad():
                return None, closure()

        self.optimizer.step(with_outputs)  # type: ignore[arg-type]


class TwoPassTrainer(Trainer):
    """The Trainer's floor: its own training step twice, nothing between."""

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run two passes; the optimizer sees the second gradient."""
        super().training_step(model, dict(inputs), num_items_in_batch)
        self.optimizer.zero_grad()
        return super().training_step(model, inputs, num_items_in_batch)


class ByHandTrainer(Trainer):
    """pytorch-optimizer's SAM in the Trainer, as a user puts it there: no masks repeated, nothing measured."""

    def __init__(self, model: nn.Module, args: TrainingArguments, **rest: Any) -> None:
        from pytorch_optimizer import SAM

        class SecondStep(SAM):
            def step(self, closure: Any = None) -> None:  # type: ignore[override]
                self.second_step()

        self.sam = SecondStep(model.parameters(), AdamW, rho=RHO, lr=LEARNING_RATE, fused=True)
        self.window: list[Any] = []
        super().__init__(model, args, optimizers=(self.sam, None), **rest)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run a pass; after the last micro-batch climb, and run all of them again."""
        self.window.append(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.sam.first_step(zero_grad=True)
            for each in self.window:
                super().training_step(model, each, num_items_in_batch)
            self.window = []
        return loss


LOOPS: dict[str, type[Peer]] = {
    "two plain passes": TwoPlainPasses,
    "hf_sam": Ours,
    "pytorch-optimizer SAM": PytorchOptimizer,
    "davda54/sam, from its formula": Davda,
    "hf_sam, gsam": OursGSAM,
    "pytorch-optimizer GSAM": PytorchOptimizerGSAM,
}
"""In a loop of one's own; the first is what the others are divided by."""
