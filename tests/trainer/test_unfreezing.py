# SPDX-License-Identifier: Apache-2.0
"""Are the parameters that move chosen anew when others are trained in the middle of a run?"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from hf_sam import SAMConfig, SAMTrainer, SAMTrainerMixin
from hf_sam.parameters.choose import chosen
from tests.models import build
from tests.promises.runs import differences, fingerprint, trainer_for

Change = Callable[[nn.Module, Any], None]


class AllInTheOptimizer(Trainer):
    """So that what is trained later is stepped on."""

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        return self.optimizer


class Watched(SAMTrainerMixin, AllInTheOptimizer):
    """Notes the names of the parameters that each descent pass finds moved."""

    step = -1

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.moved: list[set[str]] = []
        return super().train(*args, **kwargs)

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not self.in_descent_pass:
            self.step, self.before = (
                self.state.global_step,
                {n: p.detach().clone() for n, p in model.named_parameters()},
            )
        elif self.step == self.state.global_step:  # else it is the trial before the first pass of some gradients only
            self.moved.append({n for n, w in model.named_parameters() if not torch.equal(w, self.before[n])})
        return super().compute_loss(model, *args, **kwargs)


class At(TrainerCallback):
    def __init__(self, step: int, change: Change) -> None:
        self.step, self.change = step, change

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.change(kwargs["model"], kwargs["optimizer"])


def only_the_head(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("classifier"))


def unfreeze(model: nn.Module, optimizer: Any) -> None:
    for name, p in model.named_parameters():
        if re.search(r"layer\.1\.|classifier", name):
            p.requires_grad_(True)


def run(folder: Path, which: str | None, rho: float = 0.05, change: Change = unfreeze, **kwargs: Any) -> Trainer:
    sam = None if which is None else SAMConfig(rho=rho, sam_parameters=which)
    settings = {"max_steps": 4, "num_train_epochs": 1, "max_grad_norm": 0.0, **kwargs}
    classes = (AllInTheOptimizer, Watched)
    trainer = trainer_for("bert", folder, sam=sam, classes=classes, prepare=only_the_head, **settings)
    trainer.add_callback(At(2, change))
    trainer.train()
    return trainer


@pytest.mark.parametrize("which", ["no_norm", "last:1", "layer.1|classifier"])
def test_what_is_unfrozen_in_the_run_is_perturbed_if_it_is_chosen(which: str, tmp_path: Path) -> None:
    trainer = run(tmp_path, which)
    model, _ = build("bert")
    only_the_head(model)
    before = set(chosen(model, which))
    unfreeze(model, None)
    after = set(chosen(model, which))
    assert before < after
    found = [{n for n in names if not n.endswith("key.bias")} for names in trainer.moved]  # its gradient is zero
    assert found[:2] == [before] * 2
    assert found[2:] == [{n for n in after if not n.endswith("key.bias")}] * 2


def test_what_is_frozen_in_the_run_is_perturbed_no_more(tmp_path: Path) -> None:
    def freeze(model: nn.Module, optimizer: Any) -> None:
        model.classifier.bias.requires_grad_(False)

    trainer = run(tmp_path, "no_norm", change=freeze)
    assert trainer.moved == [{"classifier.weight", "classifier.bias"}] * 2 + [{"classifier.weight"}] * 2


def test_nothing_left_to_perturb_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    def freeze(model: nn.Module, optimizer: Any) -> None:
        unfreeze(model, optimizer)
        model.classifier.requires_grad_(False)

    with pytest.raises(ValueError, match=r"'classifier' chooses none: the 2 parameters .* are frozen"):
        run(tmp_path, "classifier", change=freeze)


@pytest.mark.parametrize("which", ["all", "last:1"])
def test_at_rho_zero_unfreezing_is_the_plain_trainers(which: str, tmp_path: Path) -> None:
    plain, zero = run(tmp_path / "a", None), run(tmp_path / "b", which, rho=0.0)
    assert not differences(fingerprint(plain), fingerprint(zero))


def test_a_layer_that_a_callback_adds_is_perturbed(tmp_path: Path) -> None:
    def add(model: nn.Module, optimizer: Any) -> None:
        model.classifier = nn.Sequential(model.classifier, nn.Linear(2, 2))
        optimizer.param_groups[0]["params"] += list(model.classifier[1].parameters())

    trainer = run(tmp_path, "classifier", change=add)
    assert trainer.moved[-1] == {f"classifier.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")}


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["momentum", "friendly", "looksam", "gsam", "asam"])
def test_variants_that_remember_take_parameters_that_come_later(variant: str, tmp_path: Path) -> None:
    trainer = trainer_for(
        *("bert", tmp_path),
        sam=SAMConfig(rho=0.05, sam_variant=variant, sam_start=0.0),
        classes=(AllInTheOptimizer, type("Both", (SAMTrainer, AllInTheOptimizer), {})),
        prepare=only_the_head,
        max_steps=6,
    )
    trainer.add_callback(At(3, unfreeze))
    trainer.train()
    assert trainer.state.global_step == 6
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
