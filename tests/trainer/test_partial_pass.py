# SPDX-License-Identifier: Apache-2.0
"""Do losses that ask for gradients themselves train right where only some parameters are perturbed?"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer

from hf_sam import SAMConfig, SAMTrainer, SAMTrainerMixin
from tests.promises.runs import differences, fingerprint, trainer_for


class Penalty(Trainer):
    """Keeps the gradient at the word embeddings small."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        outputs = model(**inputs)
        weight = model.get_input_embeddings().weight
        (g,) = torch.autograd.grad(outputs.loss, weight, create_graph=True)
        loss = outputs.loss + 10 * g.square().sum()
        return (loss, outputs) if return_outputs else loss


class QuietPenalty(Trainer):
    """The same, but without a word where the embeddings are frozen."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        if not model.get_input_embeddings().weight.requires_grad:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        return Penalty.compute_loss(self, model, inputs, return_outputs, **kwargs)


class Adversarial(Trainer):
    """The usual FGM: a second pass with the embeddings moved along their gradient, where they have one."""

    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Any:
        loss = super().training_step(model, inputs, *args)
        weight = model.get_input_embeddings().weight
        if weight.requires_grad and weight.grad is not None:
            with torch.no_grad():
                before = weight.clone()
                weight += weight.grad / weight.grad.norm()
            super().training_step(model, inputs, *args)
            with torch.no_grad():
                weight.copy_(before)
        return loss


class Smooth(Trainer):
    """VAT: the embeddings' output is moved along a gradient of its own."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        labels, ids, mask = inputs["labels"], inputs["input_ids"], inputs.get("attention_mask")
        embedded = model.get_input_embeddings()(ids)
        embedded.retain_grad()
        first = model(inputs_embeds=embedded, attention_mask=mask, labels=labels).loss
        (g,) = torch.autograd.grad(first, embedded, retain_graph=True)
        moved = embedded + 0.1 * g / (g.norm() + 1e-12)
        return first + model(inputs_embeds=moved, attention_mask=mask, labels=labels).loss


LOSSES = [Penalty, QuietPenalty, Adversarial, Smooth]


def run(base: type, folder: Path, which: str | None, rho: float = 0.05, **settings: Any) -> Trainer:
    sam = None if which is None else SAMConfig(rho=rho, sam_parameters=which, **settings.pop("sam", {}))
    settings = {"max_steps": 3, "num_train_epochs": 1, "optim": "sgd", **settings}
    sharp = type(f"SAM{base.__name__}", (SAMTrainerMixin, base), {})
    attention = {"prepare": lambda model: model.set_attn_implementation("eager")}
    trainer = trainer_for("bert", folder, sam=sam, classes=(base, sharp), **attention, **settings)
    trainer.train()
    return trainer


def loss_of_first_step(trainer: Trainer) -> float:
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.parametrize("base", LOSSES)
def test_the_clean_pass_is_the_plain_trainers_also_with_the_embeddings_left_out(
    base: type, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        part = run(base, tmp_path / "b", "last:1", max_steps=1)
    plain = run(base, tmp_path / "a", None, max_steps=1)
    assert loss_of_first_step(part) == loss_of_first_step(plain)
    assert sum("saves less here" in message for message in caplog.messages) == 1
    assert all(entry["sam/skipped"] == 0 for entry in part.state.log_history if "sam/skipped" in entry)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("base", LOSSES)
def test_at_rho_zero_it_is_the_plain_trainer(base: type, accumulation: int, tmp_path: Path) -> None:
    settings = {"gradient_accumulation_steps": accumulation}
    plain = run(base, tmp_path / "a", None, **settings)
    for name, scope in (("b", "batch"), ("c", "micro_batch")):
        if base is Adversarial and scope == "micro_batch" and accumulation > 1:
            continue  # it looks at gradients of earlier micro-batches, which this scope keeps apart
        zero = run(base, tmp_path / name, "last:1", rho=0.0, sam={"sam_scope": scope}, **settings)
        assert not differences(fingerprint(plain), fingerprint(zero))


@pytest.mark.slow
@pytest.mark.parametrize("base", LOSSES)
def test_the_perturbation_is_that_of_all_gradients_cut_down_to_the_chosen(base: type, tmp_path: Path) -> None:
    """A choice that leaves out one bias only has nearly the perturbation of all."""
    chosen = run(base, tmp_path / "a", r"^(?!.*pooler\.dense\.bias)", max_steps=1)
    every = run(base, tmp_path / "b", "all", max_steps=1)
    pairs = zip(chosen.model.parameters(), every.model.parameters(), strict=True)
    assert max((p - q).abs().max().item() for p, q in pairs) < 1e-3


def test_an_ordinary_loss_is_frozen_and_nobody_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts: list[int] = []

    class Counting(SAMTrainer):
        def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            counts.append(sum(p.requires_grad for p in model.parameters()))
            return super().compute_loss(model, *args, **kwargs)

    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        sam = SAMConfig(rho=0.05, sam_parameters="last:1")
        trainer = trainer_for("bert", tmp_path, sam=sam, classes=(Trainer, Counting), max_steps=2)
        trainer.train()
    every = counts[0]
    some = counts[1]
    assert counts == [every, some, every, some, every]
    assert some < every
    assert not [message for message in caplog.messages if "saves less" in message]


def test_a_loss_that_writes_into_its_batch_is_not_taken_for_another_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Writing(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            inputs["input_ids"].add_(1).remainder_(30)
            return super().compute_loss(model, inputs, *args, **kwargs)

    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        sam = SAMConfig(rho=0.05, sam_parameters="last:1")
        trainer_for("bert", tmp_path, sam=sam, classes=(Trainer, Writing), max_steps=1).train()
    assert not [message for message in caplog.messages if "saves less" in message]


def test_an_error_of_the_frozen_pass_alone_leaves_gradients_and_weights_as_they_were(tmp_path: Path) -> None:
    class Full(SAMTrainer):
        def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not model.get_input_embeddings().weight.requires_grad:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().compute_loss(model, *args, **kwargs)

    sam = SAMConfig(rho=0.05, sam_parameters="last:1")
    trainer = trainer_for("bert", tmp_path, sam=sam, classes=(Trainer, Full), max_steps=2)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert all(p.grad is None and p.requires_grad for p in trainer.model.parameters())
