# SPDX-License-Identifier: Apache-2.0
"""Who else writes gradients and weights in a step: is it kept as a plain Trainer keeps it, or does the run end?"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_sam import SAMConfig, SAMTrainer, SAMTrainerMixin
from tests.compare import bits

RHO_ZERO, SAM = SAMConfig(rho=0.0), SAMConfig(rho=0.3)


class Net(nn.Module):
    """A classifier with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(nn.functional.dropout(torch.tanh(self.body(x)), 0.2, self.training))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def examples(count: int = 48) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(4, generator=generator), "labels": i % 3} for i in range(count)]


def trained(
    folder: Path, cls: type, sam: SAMConfig | None = None, model: Any = None, more: Any = None, **arguments: Any
) -> Any:
    settings = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 0.1,
        "optim": "sgd",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **arguments,
    }
    set_seed(0)
    model = Net() if model is None else model()
    extra = {**(more(model) if more else {}), **({} if sam is None else {"sam_config": sam})}
    args = TrainingArguments(str(folder), use_cpu=True, **settings)
    trainer = cls(model, args, train_dataset=examples(), **extra)
    trainer.train()
    return trainer


def same(left: Any, right: Any) -> bool:
    pairs = zip(bits(left.model.parameters()), bits(right.model.parameters()), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def keys(trainer: Any) -> set[str]:
    return {key for entry in trainer.state.log_history for key in entry if key.startswith("sam/")}


# ----------------------------------------------------------------------------------------------------------------------
# Whose training_step
# ----------------------------------------------------------------------------------------------------------------------
def own_step(self: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
    model.train()
    loss = self.compute_loss(model, self._prepare_inputs(inputs)) / self.args.gradient_accumulation_steps
    self.accelerator.backward(loss)
    return loss.detach()


class OwnStep(Trainer):
    training_step = own_step


class MixedOwnStep(SAMTrainerMixin, OwnStep):
    pass


@pytest.mark.parametrize("max_grad_norm", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_a_training_step_that_does_not_reach_sams_ends_the_run_at_its_first_step(
    max_grad_norm: float, tmp_path: Path
) -> None:
    derived = type("Derived", (SAMTrainer,), {"training_step": own_step})
    with pytest.raises(NotImplementedError, match=r"`Derived\.training_step` .*SAMTrainerMixin, Derived\)"):
        trained(tmp_path, derived, SAM, max_grad_norm=max_grad_norm, save_strategy="steps", save_steps=1)
    assert not list(tmp_path.glob("checkpoint-*"))
    trained(tmp_path, derived, SAMConfig(sam_variant="none"))


@pytest.mark.slow
def test_the_way_out_of_it_trains(tmp_path: Path) -> None:
    plain = trained(tmp_path, OwnStep)
    assert same(plain, trained(tmp_path, MixedOwnStep, RHO_ZERO))
    sharp = trained(tmp_path, MixedOwnStep, SAM)
    assert not same(plain, sharp)
    assert "sam/sharpness" in keys(sharp)


def reaching(reaches: Any, other: Any = own_step) -> dict[str, Any]:
    """Return a `training_step` that calls SAM's at some micro-batches and another one at the others."""

    def training_step(self: Any, *args: Any) -> Tensor:
        self.calls = getattr(self, "calls", -1) + 1
        own = reaches(self.calls)
        return super(type(self), self).training_step(*args) if own else other(self, *args)

    return {"training_step": training_step}


def test_a_step_in_between_that_does_not_reach_sams_is_told_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sometimes = type("Sometimes", (SAMTrainer,), reaching(lambda call: call % 2 == 0))
    with caplog.at_level(logging.WARNING, "hf_sam"):
        trainer = trained(tmp_path, sometimes, SAM, max_steps=4)
    assert [record.getMessage().count("Sometimes.training_step") for record in caplog.records] == [1]
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["sam/perturbed"] for entry in logged[1::2]] == [0.0, 0.0]


@pytest.mark.parametrize("first", [0, 4])
@pytest.mark.slow
def test_a_step_whose_last_micro_batch_does_not_reach_sams_is_not_replayed_with_the_next(
    first: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    partly = type("Partly", (SAMTrainer,), reaching(lambda call: call < first or call % 2 == 0))
    if first == 0:
        with pytest.raises(NotImplementedError, match="the optimizer took the clean gradient"):
            trained(tmp_path, partly, SAM, gradient_accumulation_steps=2)
        return
    with caplog.at_level(logging.WARNING, "hf_sam"):
        trainer = trained(tmp_path, partly, SAM, gradient_accumulation_steps=2, max_steps=4)
    assert "the optimizer took the clean gradient" in caplog.text
    assert trainer._sam.window is None


@pytest.mark.slow
def test_a_batch_that_is_skipped_is_no_trouble(tmp_path: Path) -> None:
    def nothing(self: Any, *args: Any) -> Tensor:
        return torch.zeros(())

    skips = reaching(lambda call: call > 0, nothing)
    plain = trained(tmp_path, type("Skipping", (Trainer,), skips))
    assert same(plain, trained(tmp_path, type("Skipping", (SAMTrainer,), skips), RHO_ZERO))


@pytest.mark.slow
def test_a_run_that_begins_after_its_last_step_is_no_trouble(tmp_path: Path) -> None:
    trained(tmp_path, SAMTrainer, SAM, num_train_epochs=1, max_steps=12, save_strategy="steps", save_steps=12)
    model, args = Net(), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", max_steps=12)
    trainer = SAMTrainer(model, args, train_dataset=examples(), sam_config=SAM)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))


def twice(self: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
    """Two tasks, each with a loss of its own."""
    base = super(type(self), self)
    parts = [{k: v[rows] for k, v in inputs.items()} for rows in (slice(0, 2), slice(2, 4))]
    return sum(base.training_step(model, part, num_items_in_batch) for part in parts)


@pytest.mark.parametrize(
    ("scope", "accumulation"),
    [("batch", 1), *(pytest.param(*more, marks=pytest.mark.slow) for more in (("batch", 2), ("micro_batch", 2)))],
)
def test_two_calls_in_one_step_add_up(accumulation: int, scope: str, tmp_path: Path) -> None:
    arguments = {"gradient_accumulation_steps": accumulation}
    plain = trained(tmp_path, type("Twice", (Trainer,), {"training_step": twice}), **arguments)
    sharp = type("Twice", (SAMTrainer,), {"training_step": twice})
    assert same(plain, trained(tmp_path, sharp, SAMConfig(rho=0.0, sam_scope=scope), **arguments))


# ----------------------------------------------------------------------------------------------------------------------
# Whose gradients
# ----------------------------------------------------------------------------------------------------------------------
class Penalty(TrainerCallback):
    """Pulls the weights back to where they started, by the gradient of a penalty."""

    def on_train_begin(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.start = [p.detach().clone() for p in model.parameters()]

    def on_step_begin(self, *args: Any, model: Any, **kwargs: Any) -> None:
        sum(
            (p - w).square().sum() + 0.1 * p.sum() for p, w in zip(model.parameters(), self.start, strict=True)
        ).backward()


GATED = {"sam_gate": "gradient_norm", "sam_gate_kwargs": {"c_start": 100, "c_end": 100}}  # plain after the first step


KEPT = [
    {},
    {"sam_scope": "micro_batch"},
    {"sam_parameters": "head.*"},
    {"sam_variant": "momentum"},
    {"sam_every": 2},
    {"ascent_fraction": 0.5},
]


@pytest.mark.parametrize(
    ("settings", "accumulation"),
    [pytest.param(s, n, marks=() if (s, n) == ({}, 2) else pytest.mark.slow) for s in KEPT for n in (1, 2)],
    ids=str,
)
def test_gradients_from_before_the_step_are_kept(settings: dict[str, Any], accumulation: int, tmp_path: Path) -> None:
    def more(model: nn.Module) -> dict[str, Any]:
        return {"callbacks": [Penalty()]}

    arguments = {"gradient_accumulation_steps": accumulation, "max_grad_norm": 0.0, "optim_args": "momentum=0.9"}
    plain = trained(tmp_path, Trainer, more=more, **arguments)
    sharp = trained(tmp_path, SAMTrainer, SAMConfig(rho=0.0, **settings), more=more, **arguments)
    assert same(plain, sharp)


@pytest.mark.slow
def test_gradients_from_before_a_step_that_the_test_leaves_out_are_kept(tmp_path: Path) -> None:
    def more(model: nn.Module) -> dict[str, Any]:
        return {"callbacks": [Penalty()]}

    plain = trained(tmp_path, Trainer, more=more)
    assert same(plain, trained(tmp_path, SAMTrainer, SAMConfig(rho=0.0, **GATED), more=more))


@pytest.mark.slow
def test_gradients_from_before_the_step_do_not_say_where_to_climb(tmp_path: Path) -> None:
    """A penalty of the weights whose gradient is large: the perturbation is the one of the loss alone."""
    seen: dict[str, list[Tensor]] = {"with": [], "without": []}

    def run(name: str, callbacks: list[Any]) -> None:
        class Watching(SAMTrainer):
            def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
                if self.in_descent_pass:
                    seen[name].append(torch.cat([p.detach().flatten() for p in model.parameters()]))
                return super().compute_loss(model, *args, **kwargs)

        trained(tmp_path, Watching, SAM, more=lambda model: {"callbacks": callbacks}, max_steps=1)

    run("with", [Penalty()]), run("without", [])
    assert torch.equal(seen["with"][0], seen["without"][0])


class Editing(TrainerCallback):
    """Changes gradients between the micro-batches of a step."""

    def on_substep_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
        for p in model.parameters():
            p.grad.clamp_(-0.01, 0.01)


def test_gradients_changed_between_micro_batches_end_the_run_where_a_second_pass_would_lose_them(
    tmp_path: Path,
) -> None:
    def more(model: nn.Module) -> dict[str, Any]:
        return {"callbacks": [Editing()]}

    with pytest.raises(NotImplementedError, match=r"between two micro-batches.*on_pre_optimizer_step"):
        trained(tmp_path, SAMTrainer, SAM, more=more, gradient_accumulation_steps=2)
    plain = trained(tmp_path, Trainer, more=more, gradient_accumulation_steps=2)
    way_out = SAMConfig(rho=0.0, sam_scope="micro_batch")
    assert same(plain, trained(tmp_path, SAMTrainer, way_out, more=more, gradient_accumulation_steps=2))


# ----------------------------------------------------------------------------------------------------------------------
# Whose weights
# ----------------------------------------------------------------------------------------------------------------------
class NoStep(torch.optim.SGD):
    """For models whose hooks step."""

    def step(self, *args: Any, **kwargs: Any) -> None:
        pass


def at_once(p: Tensor, grad: Tensor) -> None:
    p.data.add_(grad, alpha=-0.1)


def through_data(p: Tensor) -> None:
    p.data.add_(p.grad, alpha=-0.1)


def own_optimizer(p: Tensor, *, clear: bool) -> Any:
    optimizer = torch.optim.SGD([p], lr=0.1)

    def step(p: Tensor) -> None:
        optimizer.step()
        if clear:
            optimizer.zero_grad()

    return step


@torch.no_grad()
def shrink(module: nn.Module, model: nn.Module) -> None:
    for p in model.parameters():
        p.mul_(0.9)


STEPPING = {
    "accumulated": lambda p: p.register_post_accumulate_grad_hook(own_optimizer(p, clear=False)),
    "cleared": lambda p: p.register_post_accumulate_grad_hook(own_optimizer(p, clear=True)),
    "data": lambda p: p.register_post_accumulate_grad_hook(through_data),
    "tensor": lambda p: p.register_hook(functools.partial(at_once, p)),
}


def stepping(hook_on: str) -> Net:
    """Return a model whose parameters step in the backward pass."""
    model = Net()
    if hook_on == "module":
        model.head.register_full_backward_hook(lambda module, *grads: shrink(module, model))
    else:
        for p in model.parameters():
            STEPPING[hook_on](p)
    return model


def no_step(model: nn.Module) -> dict[str, Any]:
    return {"optimizers": (NoStep(model.parameters(), lr=0.1), None)}


@pytest.mark.parametrize(
    "hook_on",
    [name if name == "data" else pytest.param(name, marks=pytest.mark.slow) for name in (*STEPPING, "module")],
)
def test_hooks_that_step_in_backward_end_the_run(hook_on: str, tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match=r"A hook of the model.* updates the weights during the backward"):
        trained(tmp_path, SAMTrainer, SAM, lambda: stepping(hook_on), no_step)


@pytest.mark.slow
def test_optimizers_that_torch_applies_in_backward_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    optim = pytest.importorskip("torch.distributed.optim")

    def make() -> Net:
        model = Net()
        optim._apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
        return model

    with pytest.raises(NotImplementedError, match=r"The optimizer of 'body\.weight' updates the weights"):
        trained(tmp_path / "out", SAMTrainer, SAM, make, no_step)
    assert not (tmp_path / "out").exists()


def clamp(p: Tensor) -> None:
    p.grad.clamp_(-0.1, 0.1)


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
@pytest.mark.slow
def test_hooks_that_change_gradients_train_as_in_the_plain_trainer(kind: str, tmp_path: Path) -> None:
    def make() -> Net:
        model = Net()
        for p in model.parameters():
            if kind == "register_hook":
                p.register_hook(lambda grad: grad * 0.5)
            else:
                p.register_post_accumulate_grad_hook(clamp)
        return model

    plain = trained(tmp_path, Trainer, model=make)
    assert same(plain, trained(tmp_path, SAMTrainer, RHO_ZERO, make))
    assert not same(plain, trained(tmp_path, SAMTrainer, SAM, make))


@pytest.mark.slow
def test_weights_that_an_adversarial_pass_moves_and_brings_back_are_no_optimizers_work(tmp_path: Path) -> None:
    class Adversarial(Trainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            loss = super().training_step(model, dict(inputs), num_items_in_batch)
            kept = [p.detach().clone() for p in model.parameters()]
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.1 * p.grad)
            super().training_step(model, dict(inputs), num_items_in_batch)
            with torch.no_grad():
                for p, w in zip(model.parameters(), kept, strict=True):
                    p.copy_(w)
            return loss

    class Mixed(SAMTrainerMixin, Adversarial):
        pass

    def make() -> Net:
        model = Net()
        model.body.weight.register_hook(lambda grad: grad)
        return model

    assert same(trained(tmp_path, Adversarial, model=make), trained(tmp_path, Mixed, RHO_ZERO, make))


# ----------------------------------------------------------------------------------------------------------------------
# Outside of train()
# ----------------------------------------------------------------------------------------------------------------------
def test_a_training_step_outside_of_train_is_a_sharpness_aware_one(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    batch = {"x": torch.randn(4, 4), "labels": torch.tensor([0, 1, 2, 0])}
    found = []
    for sam in (RHO_ZERO, SAM):
        set_seed(0)
        trainer = SAMTrainer(Net(), args, sam_config=sam)
        before = bits(trainer.model.parameters())
        set_seed(1)
        loss = trainer.training_step(trainer.model, dict(batch))
        assert all(torch.equal(a, b) for a, b in zip(before, bits(trainer.model.parameters()), strict=True))
        found.append((loss, [p.grad.clone() for p in trainer.model.parameters()]))
    reference = Net()
    reference.load_state_dict(trainer.model.state_dict())
    set_seed(1)
    expected = reference(**batch)["loss"]
    expected.backward()
    assert torch.equal(found[0][0], expected)
    assert torch.equal(found[1][0], expected)
    assert all(torch.equal(g, p.grad) for g, p in zip(found[0][1], reference.parameters(), strict=True))
    assert not any(torch.equal(g, p.grad) for g, p in zip(found[1][1], reference.parameters(), strict=True))
