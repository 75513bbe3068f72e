# SPDX-License-Identifier: Apache-2.0
"""Is a client's trainer with the mixin the client's trainer, and what does it do at rho above zero?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from transformers import Trainer

from hf_sam import SAMConfig
from tests.promises.runs import differences, fingerprint, weights

Make = Callable[..., Trainer]  # make(sam, **arguments): plain when sam is None, otherwise with the mixin


def mostly_slow(names: Iterable[str], *fast: str) -> list[Any]:
    """Return `names` as parameters of a test, all of them slow tests but those named again."""
    return [pytest.param(name, marks=[] if name in fast else pytest.mark.slow) for name in names]


BOTH_SCOPES = pytest.mark.parametrize("scope", mostly_slow(["batch", "micro_batch"], "batch"))
ACCUMULATION = pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])

SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "per_device_train_batch_size": 4,
    "max_steps": 3,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def everything(trainer: Trainer) -> dict[str, Any]:
    """Return the run's fingerprint, and the weights that sentence-transformers' losses hold."""
    found = fingerprint(trainer)
    for name, parameter in loss_parameters(trainer).items():
        found[f"loss {name}"] = parameter.detach().clone()
    return found


def loss_parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return the parameters of the trainer's loss modules that are trained beside the model's."""
    losses = getattr(trainer, "loss", None)
    modules = losses if isinstance(losses, dict) else {"": losses}
    of_model = {id(p) for p in trainer.model.parameters()}
    return {
        f"{key}.{name}": p
        for key, module in modules.items()
        if isinstance(module, torch.nn.Module)
        for name, p in module.named_parameters()
        if p.requires_grad and id(p) not in of_model
    }


def assert_plain_at_rho_zero(make: Make, scope: str = "batch", accumulation: int = 1, **arguments: Any) -> Trainer:
    """Train with and without the mixin at rho = 0 and compare every bit; return the plain run's trainer."""
    arguments = {"gradient_accumulation_steps": accumulation, **arguments}
    plain = make(None, **arguments)
    start = weights(plain)
    plain.train()
    expected = everything(plain)
    assert (weights(plain) - start).abs().max() > 1e-3  # equality means something
    sharp = make(SAMConfig(rho=0.0, sam_scope=scope), **arguments)
    sharp.train()
    assert differences(expected, everything(sharp)) == []
    assert len(perturbations(sharp)) == sharp.state.global_step  # both passes ran at every step
    return plain


def perturbations(trainer: Trainer) -> list[float]:
    return [entry["sam/epsilon_norm"] for entry in trainer.state.log_history if entry.get("sam/perturbed")]


def counts(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the logs without what the clock, SAM and the gradient at w + epsilon have in them."""
    passing = ("runtime", "per_second", "sam/", "grad_norm")
    return [
        {k: v for k, v in entry.items() if not any(word in k for word in passing)}
        for entry in trainer.state.log_history
    ]


def assert_logs_are_of_the_clean_pass(make: Make, scope: str = "batch", **arguments: Any) -> None:
    """With a learning rate of zero the weights stay, so whatever is logged at w + epsilon would show."""
    arguments = {"learning_rate": 0.0, "gradient_accumulation_steps": 2, **arguments}
    plain = make(None, **arguments)
    plain.train()
    sharp = make(SAMConfig(rho=3.0, sam_scope=scope), **arguments)
    sharp.train()
    assert perturbations(sharp) == pytest.approx([3.0] * sharp.state.global_step, rel=1e-3)
    rises = [entry["sam/sharpness"] for entry in sharp.state.log_history if entry.get("sam/perturbed")]
    assert max(map(abs, rises)) > 1e-2  # the loss at w + epsilon is another one
    assert counts(sharp) == counts(plain)


def assert_trains(make: Make, rho: float = 0.05, **arguments: Any) -> Trainer:
    """Train at rho > 0; the loss falls and every perturbation has the length asked for."""
    trainer = make(SAMConfig(rho=rho), **arguments)
    start = weights(trainer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    third = max(1, len(losses) // 3)
    assert sum(losses[-third:]) < sum(losses[:third])
    assert not torch.equal(weights(trainer), start)
    assert perturbations(trainer) == pytest.approx([rho] * trainer.state.global_step, rel=1e-3)
    return trainer
