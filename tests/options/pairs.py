# SPDX-License-Identifier: Apache-2.0
"""Is a run with rho = 0 the plain Trainer's, and is one with rho > 0 a right one, for any model and any option?"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, set_seed

from hf_sam import SAMConfig, SAMTrainer
from tests.models import build
from tests.promises.runs import differences, fingerprint

Make = Callable[[SAMConfig | None], Trainer]
RHO = 0.1


def trainer_on(
    model: nn.Module,
    data: Any,
    output_dir: Any,
    *,
    sam: SAMConfig | None,
    classes: tuple[type, type] = (Trainer, SAMTrainer),
    trainer_kwargs: dict[str, Any] | None = None,
    **arguments: Any,
) -> Trainer:
    """Return a trainer for any model; plain when `sam` is None."""
    settings = {
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **copy.deepcopy(arguments),  # the Trainer writes into dictionaries among them
    }
    args = TrainingArguments(str(output_dir), **settings)
    extra = {} if sam is None else {"sam_config": sam}
    set_seed(args.seed)
    cls = classes[sam is not None]
    return cls(model, args, train_dataset=data, **extra, **(trainer_kwargs or {}))


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of what is trained."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def frozen(model: nn.Module) -> dict[str, list[Tensor]]:
    """Return copies of what is not trained; a quantised weight as the tensors it is made of."""
    return {
        name: [part.clone() for part in parts(p.detach())]
        for name, p in model.named_parameters()
        if not p.requires_grad
    }


def parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that a tensor subclass, such as a quantised weight, is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from parts(getattr(tensor, name))


def changed(model: nn.Module, before: dict[str, Any]) -> set[str]:
    """Return the names of the parameters in `before` that have other bits now."""
    found = set()
    for name, p in model.named_parameters():
        if name in before:
            then = before[name] if isinstance(before[name], list) else [before[name]]
            if not all(torch.equal(a, b) for a, b in zip(parts(p.detach()), then, strict=True)):
                found.add(name)
    return found


def plain_tensors(found: dict[str, Any]) -> dict[str, Any]:
    """Return a fingerprint with every quantised tensor as its parts: those can be compared."""
    flat: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, Tensor) and hasattr(value, "__tensor_flatten__"):
            flat.update({f"{name} part {i}": part for i, part in enumerate(parts(value))})
        else:
            flat[name] = value
    return flat


def assert_plain_at_rho_zero(make: Make) -> tuple[Trainer, Trainer]:
    """Train the plain Trainer and SAM's with rho = 0, both passes; assert the same bits everywhere."""
    plain = make(None)
    start = trainable(plain.model)
    plain.train()
    expected = plain_tensors(fingerprint(plain))
    sharp = make(SAMConfig(rho=0.0))
    sharp.train()
    assert differences(expected, plain_tensors(fingerprint(sharp))) == []
    assert changed(plain.model, start)  # so that equality means something
    norms = [entry["sam/epsilon_norm"] for entry in sharp.state.log_history if entry.get("sam/perturbed")]
    assert len(norms) == sharp.state.global_step  # perturb and restore ran at every step
    return plain, sharp


class Climbing(SAMTrainer):
    """Notes which parameters stand elsewhere while the descent pass runs."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        # Schedule-free optimizers move the weights where they train from: the Trainer asks for it in its own step.
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        self.clean = trainable(self.model), frozen(self.model)
        return super().training_step(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self.in_descent_pass:
            moved, stayed = (changed(self.model, part) for part in self.clean)
            assert not stayed, f"frozen parameters moved: {stayed}"
            self.climbed = getattr(self, "climbed", set()) | moved
        return super().compute_loss(*args, **kwargs)


def assert_climbs_at_rho(make: Make, rho: float = RHO) -> Any:
    """Train with rho > 0: epsilon is as long as asked, only trained weights move, and the frozen ones never.

    Args:
        make: must build its trainer from `Climbing`.
        rho: the radius.
    """
    trainer: Any = make(SAMConfig(rho=rho))
    start, still = trainable(trainer.model), frozen(trainer.model)
    trainer.train()
    norms = [entry["sam/epsilon_norm"] for entry in trainer.state.log_history if entry.get("sam/perturbed")]
    assert norms == [pytest.approx(rho, rel=1e-4)] * trainer.state.global_step
    assert trainer.climbed
    assert trainer.climbed <= set(start)
    assert changed(trainer.model, start)
    assert not changed(trainer.model, still)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters() if p.requires_grad)
    return trainer


FIELDS = {f.name for f in dataclasses.fields(TrainingArguments)}


def maker(tmp_path: Any, family: str = "llama", **settings: Any) -> Any:
    """Return a function that makes a trainer, plain or sharp; skip where this version has no such option."""
    missing = sorted(set(settings) - FIELDS - {"trainer_kwargs", "data", "classes", "model_init"})
    if missing:
        pytest.skip(f"this version of transformers has no {missing[0]}")

    def make(sam: SAMConfig | None) -> Trainer:
        model, data = build(family)
        given = {"classes": (Trainer, Climbing), **settings}
        data = given.pop("data", data)
        given["trainer_kwargs"] = {"eval_dataset": data, **given.pop("trainer_kwargs", {})}
        return trainer_on(model, data, tmp_path, sam=sam, **given)

    return make
