# SPDX-License-Identifier: Apache-2.0
"""Bi-LoRA: climb with a second LoRA in the pass that trains the first one."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_sam._checks import check_count, checked_choice
from hf_sam.step_context import StepContext
from hf_sam.variants.base import Length, Regulariser
from hf_sam.variants.lora.branch import Branch
from hf_sam.variants.lora.layers import active_factors, lora_layers
from hf_sam.vectors.shards import local_shard
from hf_sam.vectors.stochastic_rounding import seed_from

STREAM = 0xB10A
"""The seed of the first A2, the same in every run and on every process. The run's own streams are not used."""
BETAS, EPS = (0.9, 0.999), 1e-8
OPTIMIZERS = ("adam", "sgd")

NOT_LINEAR = (
    '`sam_variant="bi_lora"` adds a second LoRA to linear layers. %r is a %s. Leave it out of `target_modules`, or '
    'choose sam_variant="nbar".'
)


class BiLoRA(Regulariser):
    """Bi-LoRA (Liu et al., ICLR 2026, eq. 8 to 10 and algorithm 1): a second LoRA climbs while the first one descends.

    *Experimental*: no measured run has gained by it yet.

    The model computes with W + s B A + B2 A2. One backward pass gives the gradients of both; A and B take the
    optimizer's step, A2 and B2 a step of the same learning rates upwards. Then

        A2, B2 *= sqrt(rho / c)  where c > rho,    c^2 = sum over layers of ||B2 A2||_F^2

    so `rho` is a Euclidean norm over all perturbed weights; the paper takes 0.05 to 0.1. A2 and B2 are dropped after
    training. The loss reported is the one at the perturbed weights. A radius acts from the next step on, and the first
    step is a plain one. The paper adds the second LoRA with LoRA's own scale; here the scale is 1, so that c is what
    is added to the weights.

    Layers may be quantised, or variants of LoRA that keep the shape of the layer (DoRA). All processes have to see
    parts of the same batch, as they do under DDP and FSDP: the gradients of A2 and B2 are averaged over them.

    Args:
        rank: of the second LoRA, >= 1; the paper takes 8.
        optimizer: "sgd", eq. 9 as printed; or "adam" (betas 0.9 and 0.999, no weight decay). The paper does not say
            which one its experiments took, but with its learning rates only the second comes near rho.

    Raises:
        ValueError: if an option is out of range.
    """

    title = "Bi-LoRA"
    default_rho = 0.05
    remembers = True
    citation = """@inproceedings{liu2026bilora,
    title     = {{Bi-LoRA}: Efficient Sharpness-Aware Minimization for Fine-Tuning Large-Scale Models},
    author    = {Yuhang Liu and Tao Li and Zhehao Huang and Zuopeng Yang and Xiaolin Huang},
    booktitle = {International Conference on Learning Representations},
    year      = {2026},
    url       = {https://arxiv.org/abs/2508.19564}
}"""

    def __init__(self, *, rank: int = 8, optimizer: str = "adam") -> None:
        self.rank = check_count("BiLoRA", "rank", rank)
        self.optimizer = checked_choice("BiLoRA(optimizer=...)", optimizer, OPTIMIZERS)
        self._branches: dict[str, Branch] = {}
        self._layers: list[Any] = []
        self._shapes: list[tuple[int, int]] = []
        self._unhook: Any = None
        self._state: dict[str, Tensor] = {}

    def prepare_model(self, model: nn.Module) -> None:
        """Give each LoRA layer a branch on the model's device, until this object is deleted.

        Raises:
            ValueError: if there are no LoRA layers to train, or one of them is not linear.
        """
        layers = lora_layers(model, "bi_lora")
        for name, layer in layers.items():
            linear = all(isinstance(module, nn.Linear) for module in layer.lora_A.values())
            if not linear or not layer.lora_A or hasattr(layer, "parameter_name") or hasattr(layer, "in_proj_weight"):
                raise ValueError(NOT_LINEAR % (name, type(layer.get_base_layer()).__name__))
        if self._unhook is not None:
            self._unhook()
        self._layers = list(layers.values())
        self._make_branches(layers)
        handles = [layers[name].register_forward_hook(branch) for name, branch in self._branches.items()]
        self._unhook = weakref.finalize(self, _remove, handles)

    def hide(self) -> None:
        """Leave A2 and B2 out of the model's output but inside of `at_work`."""
        for branch in self._branches.values():
            branch.hidden = True

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Add A2 and B2 to the model's output inside, also where they are hidden."""
        hidden = [branch for branch in self._branches.values() if branch.hidden]
        for branch in hidden:
            branch.hidden = False
        try:
            yield
        finally:
            for branch in hidden:
                branch.hidden = True

    @torch.no_grad()
    def adjust_(self, strength: Length, context: StepContext) -> None:
        """Take the step upwards and scale A2 and B2 back to the radius; switch them off at a radius of 0.

        Args:
            strength: rho, from the next step on.
            context: with the learning rate of the coming step.
        """
        if self._on:  # else no gradient has reached the branches
            self._climb(self._rates(context))
        on = isinstance(strength, Tensor) or strength > 0
        for branch in self._branches.values():
            branch.on = on
        if on:
            c = self.norm()
            self._state["theta"].mul_(torch.where(c > strength, (strength / c).sqrt(), 1.0))

    def report(self) -> dict[str, Tensor]:
        """Return the norm of what is added to the weights."""
        return {"epsilon_norm": self.norm() if self._on else torch.zeros(())}

    def norm(self) -> Tensor:
        """Return the Euclidean norm of all B2 A2 taken as one vector; a 0-dim tensor."""
        squares = [((y.b.T @ y.b) * (y.a @ y.a.T)).sum() for y in self._branches.values()]
        return torch.stack(squares).sum().clamp_(min=0).sqrt().detach()

    def state_dict(self) -> dict[str, Any]:
        """Return A2 and B2 of all layers in one vector, Adam's moments, and whether they are at work."""
        kept = {name: tensor for name, tensor in self._state.items() if name != "gradient"}
        return {**kept, "on": self._on, "layers": "\n".join(self._branches)} if kept else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned, after `prepare_model`.

        Raises:
            ValueError: if it is of other layers, of another rank or from another optimizer.
        """
        own = self.state_dict()
        if state.keys() != own.keys() or state.get("layers") != own.get("layers"):
            raise ValueError(f"BiLoRA with {len(self._branches)} layers cannot take the state {sorted(state)}.")
        if any(self._state[name].shape != state[name].shape for name in self._state.keys() & state.keys()):
            raise ValueError(f"BiLoRA(rank={self.rank}) cannot take the state of another rank.")
        for name in self._state.keys() & state.keys():
            self._state[name].copy_(state[name])
        for branch in self._branches.values():
            branch.on = bool(state.get("on", False))

    @property
    def _on(self) -> bool:
        return any(branch.on for branch in self._branches.values())

    @torch.no_grad()
    def _make_branches(self, layers: dict[str, Any]) -> None:
        """Cut A2 and B2 out of one vector, and their gradients out of another, so that a step is a few operations."""
        first = next(f.a for layer in layers.values() for f in active_factors(layer))
        shapes = [s for x in layers.values() for s in ((self.rank, x.in_features), (x.out_features, self.rank))]
        self._shapes, dtype = shapes, torch.promote_types(first.dtype, torch.float32)
        theta = torch.zeros(sum(map(math.prod, shapes)), dtype=dtype, device=local_shard(first).device)
        gradient = torch.zeros_like(theta)
        cut = _cut(theta, shapes)
        cut_gradient = _cut(gradient, shapes)
        generator = torch.Generator().manual_seed(seed_from(STREAM))
        for name, a, b, g_a, g_b in zip(
            layers, cut[::2], cut[1::2], cut_gradient[::2], cut_gradient[1::2], strict=True
        ):
            # As peft starts A; B starts at zero, so nothing is perturbed yet.
            a.copy_(torch.empty(a.shape, dtype=dtype).uniform_(-1, 1, generator=generator) / math.sqrt(a.shape[1]))
            branch = self._branches[name] = Branch(a, b)
            branch.a.grad, branch.b.grad = g_a, g_b
        self._state = {"theta": theta, "gradient": gradient}
        if self.optimizer == "adam":
            moments = {"mean": torch.zeros_like(theta), "variance": torch.zeros_like(theta)}
            self._state.update(moments, steps=torch.zeros((), dtype=dtype, device=theta.device))

    def _rates(self, context: StepContext) -> list[Length]:
        """Return the learning rate of each A2 and B2: that of the layer's own A or B (LoRA+ has one for each)."""
        firsts = [next((f for f in active_factors(layer) if f.trained), None) for layer in self._layers]
        rates = iter(context.rates_of([t for f in firsts if f for t in (f.a, f.b)], "sam_variant='bi_lora'"))
        return [next(rates) if f else 0.0 for f in firsts for _ in "AB"]

    def _climb(self, rates: list[Length]) -> None:
        """Take the step upwards and drop the gradient; do nothing if that is not finite."""
        theta, gradient = self._state["theta"], self._state["gradient"]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(gradient)
            gradient.div_(torch.distributed.get_world_size())
        gradient.div_(self.loss_scale)
        usable = torch.isfinite(gradient).all()
        upwards = self._direction(torch.where(usable, gradient, 0.0), usable)
        upwards = torch.where(usable, upwards, 0.0)
        parts = _cut(upwards, self._shapes)
        numbers = [lr for lr in rates if not isinstance(lr, Tensor)]
        if len(numbers) == len(parts):
            torch._foreach_mul_(parts, numbers)
        else:
            for part, lr in zip(parts, rates, strict=True):
                part.mul_(lr)
        theta.add_(upwards)
        gradient.zero_()

    def _direction(self, gradient: Tensor, usable: Tensor) -> Tensor:
        """Return the step upwards for a learning rate of 1; leave Adam's moments alone where it is not usable."""
        if self.optimizer == "sgd":
            return gradient
        mean, variance, steps = (self._state[name] for name in ("mean", "variance", "steps"))
        (beta1, beta2), taken = BETAS, usable.to(gradient.dtype)
        mean.lerp_(gradient, (1 - beta1) * taken)
        variance.lerp_(gradient.square(), (1 - beta2) * taken)
        steps.add_(taken)
        deviation = (variance / (1 - beta2**steps)).sqrt_().add_(EPS)
        return mean / (1 - beta1**steps) / deviation


def _cut(flat: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    parts = torch.split(flat, [math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _remove(handles: Iterable[Any]) -> None:
    for handle in handles:
        handle.remove()
