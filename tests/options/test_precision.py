# SPDX-License-Identifier: Apache-2.0
"""Is each pass cast by itself under autocast, and is SAM's step in bf16 the one of the formulas?"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_sam import SAM, VARIANTS, SAMConfig, SAMTrainer, sharpness_aware_grad
from hf_sam.vectors.vectors import Ascent
from tests.promises.runs import SAMScaled, trainer_for
from tests.promises.test_one_epsilon import without_dropout

RHO = 0.3


class Casting(SAMTrainer):
    """Notes where an autocast context is active."""

    carried = ("casts",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.casts: list[tuple[str, bool]] = []
        self.model.bert.encoder.register_forward_hook(lambda *_: self.note("forward"))

    def note(self, where: str) -> None:
        self.casts.append((where, torch.is_autocast_enabled("cpu")))

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.note("step")
        loss = super().training_step(*args, **kwargs)
        self.note("end of step")
        return loss

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.note("descent" if self.in_descent_pass else "ascent")
        return super().compute_loss(*args, **kwargs)


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_autocast_is_entered_in_each_forward_pass_and_active_nowhere_else(
    half: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(SAM):
        def ascend(self, params: list[Tensor], grads: list[Tensor], rho: float) -> Ascent:
            trainer.note("climb")
            return super().ascend(params, grads, rho)

    monkeypatch.setitem(VARIANTS, "watched", Watched)
    casting = Casting if half == "bf16" else type("Casting", (Casting, SAMScaled), {})
    trainer: Any = trainer_for(
        "bert",
        tmp_path,
        sam=SAMConfig(rho=RHO, sam_variant="watched", sam_check_repeatable="off"),
        classes=(Trainer, casting),
        max_steps=1,
        gradient_accumulation_steps=2,
        bf16=half == "bf16",
    )
    trainer.train()
    one = [("step", False), ("ascent", False), ("forward", True)]
    two = [("climb", False), ("descent", False), ("forward", True), ("descent", False), ("forward", True)]
    end = ("end of step", False)
    assert trainer.casts == [*one, end, *one, *two, end]


def by_hand(model: nn.Module, batches: list[dict[str, Tensor]], items: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Run one step of SAM, one formula at a time, under bf16 autocast or in `dtype` float64."""
    model = copy.deepcopy(model).train()
    if dtype == torch.float64:
        model = model.double()
    params = [p for p in model.parameters() if p.requires_grad]

    def loss_and_gradient() -> tuple[float, list[Tensor]]:
        model.zero_grad()
        total = 0.0
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = model(**batch, num_items_in_batch=items).loss
            loss.backward()
            total += loss.item()
        return total, [p.grad.clone() for p in params]

    clean, g = loss_and_gradient()
    norm = torch.stack([x.double().square().sum() for x in g]).sum().sqrt()
    with torch.no_grad():
        for p, x in zip(params, g, strict=True):
            p.add_(x * (RHO / norm).to(x.dtype))
    perturbed, h = loss_and_gradient()
    return {"rise": perturbed - clean, "g": flat(g), "h": flat(h)}


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().double().flatten() for t in tensors])


class Keeping(SAMTrainer):
    """Keeps the batches and the gradient that the optimizer gets."""

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Any:
        self.batches.append({k: v.clone() for k, v in inputs.items()})
        self.items = num_items_in_batch
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.gradient = flat([p.grad for p in model.parameters()])
        return loss


def kept(tmp_path: Any, cls: type = Keeping, **settings: Any) -> tuple[Any, nn.Module]:
    """Train one step, and return the trainer with the model as it was."""
    trainer: Any = trainer_for(
        "llama",
        tmp_path,
        sam=SAMConfig(rho=RHO),
        classes=(Trainer, cls),
        prepare=without_dropout,
        max_steps=1,
        max_grad_norm=0.0,
        **settings,
    )
    trainer.batches = []
    start = copy.deepcopy(trainer.model)
    trainer.train()
    return trainer, start


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_step_in_bf16_autocast_is_the_one_written_by_hand(accumulation: int, tmp_path: Any) -> None:
    trainer, start = kept(tmp_path, bf16=True, gradient_accumulation_steps=accumulation)
    assert len(trainer.batches) == accumulation
    cast = by_hand(start, trainer.batches, trainer.items, torch.bfloat16)
    exact = by_hand(start, trainer.batches, trainer.items, torch.float64)
    # With the same casts only the last bits of epsilon differ, which may turn a rounding to bf16 here and there.
    assert relative(trainer.gradient, cast["h"]) < 5e-3
    assert relative(trainer.gradient, exact["h"]) < 3e-2  # bf16 has 8 bits
    assert relative(exact["g"], exact["h"]) > 0.1  # g in place of h would not have passed
    sharpness = trainer.state.log_history[0]["sam/sharpness"]
    assert sharpness == pytest.approx(exact["rise"], rel=0.05)
    assert sharpness > 0.05


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def test_a_step_with_a_gradient_scaler_is_the_one_written_by_hand(tmp_path: Any) -> None:
    """The loss is scaled by 2^16 in both passes: epsilon must not be longer for it."""
    scaled = type("Scaled", (Keeping, SAMScaled), {})
    trainer, start = kept(tmp_path, scaled)
    exact = by_hand(start, trainer.batches, trainer.items, torch.float64)
    assert relative(trainer.gradient / 2.0**16, exact["h"]) < 1e-2
    assert trainer.state.log_history[0]["sam/epsilon_norm"] == pytest.approx(RHO, rel=1e-4)
    assert trainer.state.log_history[0]["sam/sharpness"] == pytest.approx(exact["rise"], rel=0.02)


def test_an_autocast_context_around_the_whole_step_does_not_hide_the_perturbation(tmp_path: Any) -> None:
    class Wrapped(Keeping):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return super().training_step(*args, **kwargs)

    trainer, start = kept(tmp_path, Wrapped, gradient_accumulation_steps=2)
    exact = by_hand(start, trainer.batches, trainer.items, torch.float64)
    assert relative(trainer.gradient, exact["h"]) < 3e-2


def test_an_autocast_context_around_a_hand_written_step_does_not_hide_the_perturbation() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
    x, y = torch.randn(64, 16), torch.randn(64, 1)
    losses: list[float] = []

    def closure() -> Tensor:
        loss = (model(x).float() - y).square().mean()
        loss.backward()
        losses.append(loss.item())
        return loss

    with torch.autocast("cpu", torch.bfloat16):
        sharpness_aware_grad(closure, model.parameters(), rho=RHO)
        closure()
    first, perturbed, after = losses
    assert perturbed > first + 0.05
    assert after == first  # and afterwards nothing sees casts of the perturbed weights
