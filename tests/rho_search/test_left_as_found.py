# SPDX-License-Identifier: Apache-2.0
"""Is a trainer after `find_rho` the trainer before it, to the last bit, whatever it is set to and whatever happens?"""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.rho_search.find_rho import find_rho
from hf_sam.step.replay import RandomState
from tests.compare import bits, same_bits
from tests.floor import compiles_models
from tests.models import build
from tests.options.pairs import maker
from tests.options.test_trainer_options import OPTIONS, Augmented
from tests.promises.runs import SAMScaled, differences, fingerprint, moved, trainer_for
from tests.promises.test_rho_zero import whole_batches

QUICK: dict[str, Any] = {"steps": 2, "batches": 2, "rhos": [0.05, 0.5]}
ACCUMULATE = {"gradient_accumulation_steps": 2}


def spectral(model: Any) -> None:
    nn.utils.parametrizations.spectral_norm(model.classifier)


def weighted(model: Any) -> None:
    nn.utils.weight_norm(model.classifier)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dropout": ("bert", {}),
    "buffers": ("resnet", {}),
    "accumulation": ("llama", ACCUMULATE),
    "router noise": ("mixtral", {}),
    "encoder and decoder": ("t5", {}),
    "adapters": ("lora", ACCUMULATE),
    "bf16 autocast": ("llama", {"bf16": True}),
    "gradient scaler": ("llama", {"classes": (Trainer, SAMScaled)}),
    "NEFTune": ("llama", {"neftune_noise_alpha": 5.0}),
    "checkpointing": ("bert", {"gradient_checkpointing": True}),
    "data that draw random numbers": ("vit", {"wrap_data": Augmented}),
    "evaluation on start": ("bert", {"eval_on_start": True, "trainer_kwargs": {"eval_dataset": build("bert")[1]}}),
    "compiled": ("bert", {"torch_compile": True, "torch_compile_backend": "aot_eager", "wrap_data": whole_batches}),
    "weights computed from others": ("bert", {"prepare": spectral}),
    "weights computed by a hook": ("bert", {"prepare": weighted}),
    "smaller batches when out of memory": ("bert", {"auto_find_batch_size": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(c, marks=compiles_models) if c == "compiled" else c for c in CASES])
def test_a_run_after_it_is_the_run_without_it(case: str, tmp_path: Any) -> None:
    family, options = CASES[case]
    runs = []
    for first in (False, True):
        trainer = trainer_for(family, tmp_path, sam=SAMConfig(rho=0.1), **options)
        if first:
            find_rho(trainer, **QUICK)
        trainer.train()
        assert "prepare" in options or moved(trainer, family) > 1e-3
        rises = [entry.get("sam/sharpness") for entry in trainer.state.log_history]
        runs.append(fingerprint(trainer) | {"rises": rises})
    assert differences(*runs) == []


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_a_run_after_it_is_the_run_without_it_with_any_option(option: str, tmp_path: Any) -> None:
    make = maker(tmp_path, **OPTIONS[option])
    trainers = [make(SAMConfig(rho=0.1)) for _ in range(2)]
    runs = []
    for trainer in trainers:
        torch.manual_seed(1)
        if trainer is trainers[1]:
            find_rho(trainer, **QUICK)
        trainer.train()
        runs.append(fingerprint(trainer))
    assert differences(*runs) == []


# ----------------------------------------------------------------------------------------------------------------------
# Right afterwards
# ----------------------------------------------------------------------------------------------------------------------
class Watch(TrainerCallback):
    """Must not be called."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_") and name != "on_init_end":
            raise AssertionError(f"{name} was called")
        return super().__getattribute__(name)


def held(value: Any) -> Any:
    """Return a container's content by identity; what is no container by itself."""
    if isinstance(value, dict):
        return [(key, id(entry)) for key, entry in value.items()]
    return [id(entry) for entry in value] if isinstance(value, (list, deque)) else None


def state_of(trainer: Any) -> dict[str, Any]:
    """Return everything that could have changed: identities, contents and bits."""
    found: dict[str, Any] = {}
    owners = {"trainer": trainer, "accelerator": trainer.accelerator, "engine": trainer.accelerator.gradient_state}
    owners |= {f"module {name}": module for name, module in trainer.model.named_modules()}
    owners |= {f"callback {i}": callback for i, callback in enumerate(trainer.callback_handler.callbacks)}
    owners |= {"state": trainer.state, "control": trainer.control, "arguments": trainer.args}
    owners |= {"handler": trainer.callback_handler, "config": trainer.model.config}
    for name, owner in owners.items():
        found |= {f"{name}.{key}": (id(value), held(value)) for key, value in vars(owner).items()}
    for name, p in trainer.model.named_parameters():
        grad = None if p.grad is None else bits([p.grad])[0].tolist()
        found[f"parameter {name}"] = (bits([p])[0].tolist(), p.requires_grad, id(p.grad), grad)
    found |= {f"buffer {name}": b.tolist() for name, b in trainer.model.named_buffers()}
    for part in (trainer.optimizer, trainer.lr_scheduler):
        found[f"{type(part).__name__} at {id(part)}"] = repr(part.state_dict()) if part is not None else None
    found["control's flags"] = repr(trainer.control)
    streams = (torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(), random.getstate())
    return found | dict(zip(("torch", "numpy", "python"), streams, strict=True))


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name in before.keys() | after.keys() if before.get(name, "missing") != after.get(name, "missing")]


def used_trainer(tmp_path: Any, family: str = "bert", cls: type = SAMTrainer, **options: Any) -> Any:
    """Return a trainer in an uncommon state: modes mixed, gradients there, a parameter frozen, streams advanced."""
    trainer = trainer_for(family, tmp_path, sam=SAMConfig(rho=0.1), classes=(Trainer, cls), **options)
    modules = list(trainer.model.modules())
    trainer.model.train()
    modules[-1].eval()
    params = list(trainer.model.parameters())
    params[1].requires_grad_(False)
    for p in params[::2]:
        p.grad = torch.full_like(p, 0.25)
    torch.rand(3), numpy.random.rand(2), random.random()
    return trainer


@pytest.mark.parametrize("case", ["bert", "resnet", "llama", "bf16", "scaler"])
def test_nothing_is_changed_and_no_callback_is_called(case: str, tmp_path: Any) -> None:
    family = case if case in ("bert", "resnet") else "llama"
    options: dict[str, Any] = {"bf16": True} if case == "bf16" else {}
    cls = SAMScaled if case == "scaler" else SAMTrainer
    kwargs = {"callbacks": [Watch()]}
    trainer = used_trainer(tmp_path, family, cls, trainer_kwargs=kwargs, save_strategy="steps", save_steps=1, **options)
    before, files = state_of(trainer), sorted(Path(tmp_path).rglob("*"))
    scale = trainer.accelerator.scaler and trainer.accelerator.scaler.state_dict()
    trainer.args.eval_on_start = True  # there is nothing to evaluate on, so it would raise
    before["arguments.eval_on_start"] = (id(True), None)
    find_rho(trainer, **QUICK)
    assert changes(before, state_of(trainer)) == []
    assert (trainer.optimizer, trainer.lr_scheduler, trainer.state.log_history) == (None, None, [])
    assert sorted(Path(tmp_path).rglob("*")) == files
    assert (trainer.accelerator.scaler and trainer.accelerator.scaler.state_dict()) == scale


def own_optimizer(kind: str, model: nn.Module) -> tuple[Any, Any]:
    """Return an optimizer that has taken a step, and a schedule that has."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": params[:3], "lr": 0.02}, {"params": params[3:]}]
    optimizer: Any = (
        torch.optim.AdamW(groups, lr=0.01) if kind == "adamw" else torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    )
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for p in params:
        p.grad = torch.full_like(p, 0.1)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return optimizer, scheduler


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_an_optimizer_and_a_schedule_of_the_users_keep_their_state(kind: str, tmp_path: Any) -> None:
    runs = []
    for first in (False, True):
        model, _ = build("bert")
        parts = own_optimizer(kind, model)
        trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.1))
        trainer.model = trainer.model_wrapped = model
        trainer.optimizer, trainer.lr_scheduler = parts
        if first:
            tensors = [x for entry in parts[0].state.values() for x in entry.values() if isinstance(x, Tensor)]
            before, content = state_of(trainer), bits(tensors)
            holders = [dict(vars(part)) for part in parts]
            find_rho(trainer, **QUICK)
            assert changes(before, state_of(trainer)) == []
            assert [dict(vars(part)) for part in parts] == holders
            assert same_bits(bits(tensors), content)
            assert parts[0].param_groups[0]["lr"] == 0.01  # half of 0.02 after one step of the schedule
        trainer.train()
        runs.append(fingerprint(trainer))
    assert differences(*runs) == []


@pytest.mark.slow
@pytest.mark.parametrize("cls", [SAMTrainer, SAMScaled])
def test_a_trainer_that_has_trained_is_left_alone_too(cls: type, tmp_path: Any) -> None:
    trainer: Any = trainer_for("llama", tmp_path, sam=SAMConfig(rho=0.1), classes=(Trainer, cls), max_steps=3)
    trainer.train()
    before = state_of(trainer)
    inner, wrapper = dict(vars(trainer.optimizer.optimizer)), dict(vars(trainer.optimizer))
    found = fingerprint(trainer)
    find_rho(trainer, **QUICK)
    assert changes(before, state_of(trainer)) == []
    assert differences(found, fingerprint(trainer)) == []
    assert dict(vars(trainer.optimizer.optimizer)) == inner
    assert {k: id(v) for k, v in vars(trainer.optimizer).items()} == {k: id(v) for k, v in wrapper.items()}


@pytest.mark.slow
def test_a_model_made_by_model_init_is_made_anew_by_the_run(tmp_path: Any) -> None:
    runs = []
    for first in (False, True):
        trainer: Any = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.1))
        trainer.model_init = lambda: build("bert")[0]
        before = state_of(trainer)
        if first:
            find_rho(trainer, **QUICK)
        assert changes(before, state_of(trainer)) == []
        trainer.train()
        runs.append(fingerprint(trainer))
    assert differences(*runs) == []


class Scaled(SAMTrainer):
    """Trains a scale of the loss, which only the optimizer knows."""

    scale: nn.Parameter

    def create_optimizer(self, *args: Any) -> Any:
        optimizer = super().create_optimizer(*args)
        if not any(p is self.scale for group in optimizer.param_groups for p in group["params"]):
            optimizer.add_param_group({"params": [self.scale], "lr": 0.1})
        return optimizer

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs) * self.scale


def test_weights_that_only_the_optimizer_knows_are_left_alone(tmp_path: Any) -> None:
    trainer: Any = trainer_for("bert", tmp_path, sam=SAMConfig(), classes=(Trainer, Scaled))
    trainer.scale = nn.Parameter(torch.ones(()))
    trainer.scale.grad = torch.tensor(0.5)
    result = find_rho(trainer, **QUICK)
    assert (trainer.scale.item(), trainer.scale.grad.item()) == (1.0, 0.5)
    assert max(result.losses) < 0.69 * 0.95  # its copy had moved


def test_training_the_users_own_weights_by_a_global_name_is_refused(tmp_path: Any) -> None:
    model = build("bert")[0]

    class Global(SAMTrainer):
        def create_optimizer(self, *args: Any) -> Any:
            self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            return self.optimizer

    trainer: Any = trainer_for("bert", tmp_path, sam=SAMConfig(), classes=(Trainer, Global))
    trainer.model = trainer.model_wrapped = model
    before = state_of(trainer)
    with pytest.raises(NotImplementedError, match=r"trains weights of the trainer itself.*find_rho\(lambda"):
        find_rho(trainer, **QUICK)
    assert changes(before, state_of(trainer)) == []


# ----------------------------------------------------------------------------------------------------------------------
# Interrupted
# ----------------------------------------------------------------------------------------------------------------------
class Interrupted(SAMTrainer):
    """Ends with an interrupt at a call of `compute_loss`; each clean pass is one, and so is each radius."""

    at = 0
    number = 0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        type(self).number += 1
        loss = super().compute_loss(*args, **kwargs)
        if type(self).number == type(self).at:
            raise KeyboardInterrupt
        return loss


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "resnet"])
@pytest.mark.parametrize(
    "at", [1, 2, 3, 5, 7], ids=["first step", "second step", "clean pass", "perturbed", "second batch"]
)
def test_an_interrupt_leaves_no_trace(at: int, family: str, tmp_path: Any) -> None:
    Interrupted.at, Interrupted.number = at, 0
    trainer = used_trainer(tmp_path, family, Interrupted)
    before = state_of(trainer)
    with pytest.raises(KeyboardInterrupt):
        find_rho(trainer, **QUICK)
    assert Interrupted.number == at
    assert changes(before, state_of(trainer)) == []


def test_an_interrupt_while_streams_are_put_back_is_survived(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = used_trainer(tmp_path)
    before, calls, restore = state_of(trainer), [], RandomState.restore

    class Streams(RandomState):
        def restore(self) -> None:
            calls.append(self)
            if len(calls) == 1:
                raise KeyboardInterrupt
            restore(self)

    monkeypatch.setattr("hf_sam.rho_search.trainer_copy.RandomState", Streams)
    with pytest.raises(KeyboardInterrupt):
        find_rho(trainer, **QUICK)
    assert len(calls) == 2
    assert changes(before, state_of(trainer)) == []


# ----------------------------------------------------------------------------------------------------------------------
# A function that makes the trainer
# ----------------------------------------------------------------------------------------------------------------------
def test_a_function_that_makes_a_trainer_gives_the_same_numbers_and_leaves_the_streams(tmp_path: Any) -> None:
    def make() -> Any:
        made.append(trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.1), trainer_kwargs={"callbacks": [Watch()]}))
        return made[-1]

    made: list[Any] = []
    expected = find_rho(make(), **QUICK)
    standing_by = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.1))
    torch.rand(3), numpy.random.rand(2), random.random()
    before = state_of(standing_by)
    result = find_rho(make, **QUICK)
    assert (result.rho, result.losses, result.rises) == (expected.rho, expected.losses, expected.rises)
    assert len(made) == 2
    assert changes(before, state_of(standing_by)) == []


def test_an_interrupted_function_leaves_the_streams(tmp_path: Any) -> None:
    Interrupted.at, Interrupted.number = 3, 0
    standing_by = used_trainer(tmp_path)
    before = state_of(standing_by)
    with pytest.raises(KeyboardInterrupt):
        find_rho(lambda: trainer_for("bert", tmp_path, sam=SAMConfig(), classes=(Trainer, Interrupted)), **QUICK)
    assert changes(before, state_of(standing_by)) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (nn.Linear(2, 2), "got Linear"),
        (SAMTrainer, "got type"),
        (None, "got NoneType"),
        (lambda: 3, "got a function that makes int"),
    ],
)
def test_what_makes_no_trainer_is_refused(given: Any, words: str) -> None:
    with pytest.raises(TypeError, match=f"must be a SAMTrainer.*or a function without arguments.*{words}"):
        find_rho(given)
