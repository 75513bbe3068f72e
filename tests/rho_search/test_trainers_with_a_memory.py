# SPDX-License-Identifier: Apache-2.0
"""Is the run after `find_rho` the run without it for trainers, losses, modules and data that remember things?"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.rho_search.find_rho import find_rho
from tests.models import build
from tests.promises.runs import differences, fingerprint, moved, trainer_for

QUICK: dict[str, Any] = {"steps": 2, "batches": 2, "rhos": [0.05, 0.5]}
EXAMPLES = 26


def assert_untouched(make: Callable[[], Any], result: list[Any] | None = None) -> None:
    """Train without and after `find_rho`; assert the same bits, and that `find_rho` sees the same with a function."""
    runs, found = [], []
    for first in (False, True):
        trainer = make()
        if first:
            found.append(find_rho(trainer, **QUICK))
        trainer.train()
        assert moved(trainer, "bert") > 1e-3
        runs.append(fingerprint(trainer))
    assert differences(*runs) == []
    found.append(find_rho(make, **QUICK))
    assert found[0].rises == found[1].rises
    assert found[0].losses == found[1].losses


def trainer_of(tmp_path: Any, cls: type = SAMTrainer, **options: Any) -> Any:
    return trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.1), classes=(Trainer, cls), **options)


def batch_noise(draw: Callable[[], float], inputs: Any) -> Any:
    return {**inputs, "attention_mask": torch.full(inputs["input_ids"].shape, draw())}


# ----------------------------------------------------------------------------------------------------------------------
# On the trainer, on the loss, on a module
# ----------------------------------------------------------------------------------------------------------------------
class Targets:
    """ELR's loss: targets that follow the predictions (Liu et al. 2020)."""

    def __init__(self) -> None:
        self.kept, self.calls = torch.zeros(EXAMPLES, 2), 0

    def __call__(self, outputs: Any, labels: Tensor, **_: Any) -> Tensor:
        rows = torch.arange(len(labels)) + 4 * (self.calls % 6)
        self.calls += 1
        p = outputs["logits"].softmax(1).clamp(1e-4, 1 - 1e-4)
        self.kept[rows] = 0.7 * self.kept[rows] + 0.3 * p.detach()
        loss = nn.functional.cross_entropy(outputs["logits"], labels)
        return loss + 0.1 * (1 - (self.kept[rows] * p).sum(1)).log().mean() + 1


class Remembering(SAMTrainer):
    """Computes its loss with the targets that it holds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.targets = Targets()

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        return self.targets(outputs, inputs["labels"])


def test_targets_on_the_trainer(tmp_path: Any) -> None:
    assert_untouched(lambda: trainer_of(tmp_path, Remembering))


@pytest.mark.slow
def test_targets_of_a_loss_that_is_given(tmp_path: Any) -> None:
    assert_untouched(lambda: trainer_of(tmp_path, trainer_kwargs={"compute_loss_func": Targets()}))


def numpy_draw() -> Callable[[], float]:
    return np.random.default_rng(0).random  # a bound method: the generator is its owner


def torch_draw() -> Callable[[], float]:
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.rand((), generator=generator).item()  # a closure


class Drawing(SAMTrainer):
    draw: Callable[[], float]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(model, batch_noise(self.draw, inputs), *args, **kwargs)


class DrawingLoss:
    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw

    def __call__(self, outputs: Any, labels: Tensor, **_: Any) -> Tensor:
        return nn.functional.cross_entropy(outputs["logits"] * (1 + self.draw()), labels)


class DrawingHead(nn.Module):
    def __init__(self, head: nn.Module, draw: Callable[[], float]) -> None:
        super().__init__()
        self.head, self.draw = head, draw

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) * (1 + self.draw())


@pytest.mark.slow
@pytest.mark.parametrize("draw", [numpy_draw, torch_draw])
@pytest.mark.parametrize("place", ["trainer", "loss", "module", "collator"])
def test_a_generator_of_ones_own(place: str, draw: Any, tmp_path: Any) -> None:
    def make() -> Any:
        own = draw()

        def collate(rows: Any) -> Any:
            return batch_noise(own, {key: torch.stack([row[key] for row in rows]) for key in rows[0]})

        kwargs = {"loss": {"compute_loss_func": DrawingLoss(own)}, "collator": {"data_collator": collate}}.get(place)
        trainer = trainer_of(tmp_path, Drawing if place == "trainer" else SAMTrainer, trainer_kwargs=kwargs)
        if place == "trainer":
            trainer.draw = own
        if place == "module":
            trainer.model.classifier = DrawingHead(trainer.model.classifier, own)
        return trainer

    runs = []
    for first in (False, True):
        trainer = make()
        if first:
            find_rho(trainer, **QUICK)
        trainer.train()
        runs.append(fingerprint(trainer))
    assert differences(*runs) == []


class ChangesItsBatch(SAMTrainer):
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inputs["labels"].copy_(1 - inputs["labels"])
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.slow
def test_a_batch_changed_in_place_changes_the_users_data_only_in_the_users_run(tmp_path: Any) -> None:
    def first_row(rows: Any) -> Any:  # no copy: the batch is the memory of the data
        return {key: value.unsqueeze(0) for key, value in rows[0].items()}

    kwargs = {"data_collator": first_row}
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 6}
    assert_untouched(lambda: trainer_of(tmp_path, ChangesItsBatch, trainer_kwargs=kwargs, **options))


class SecondLoader(SAMTrainer):
    """Adds the loss of a batch of other data, read on through all of its training."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loader = DataLoader(build("bert")[1], batch_size=3, shuffle=True, generator=torch.Generator())
        self.second: Iterator[Any] | None = None

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.second is None:
            self.second = iter(self.loader)
        more = next(self.second, None)
        if more is None:
            self.second = iter(self.loader)
            more = next(self.second)
        return super().compute_loss(model, inputs, *args, **kwargs) + model(**more)["loss"]


@pytest.mark.slow
def test_a_second_loader(tmp_path: Any) -> None:
    assert_untouched(lambda: trainer_of(tmp_path, SecondLoader))


class Teacher(SAMTrainer):
    """Pulls the model to a mean of its own weights."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = build("bert")[0]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            for mean, p in zip(self.teacher.parameters(), model.parameters(), strict=True):
                mean.lerp_(p, 0.1)
            goal = self.teacher(input_ids=inputs["input_ids"])["logits"]
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return loss + (model(input_ids=inputs["input_ids"])["logits"] - goal).square().mean()


@pytest.mark.slow
def test_a_teacher_that_follows(tmp_path: Any) -> None:
    assert_untouched(lambda: trainer_of(tmp_path, Teacher))


class CountingHead(nn.Module):
    """Shrinks with the number of its calls, which is no buffer."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head, self.calls, self.log = head, 0, []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.log.append(self.calls)
        return self.head(x) / (1 + 0.01 * len(self.log))


@pytest.mark.slow
def test_a_counter_in_a_module(tmp_path: Any) -> None:
    def make() -> Any:
        trainer = trainer_of(tmp_path)
        trainer.model.classifier = CountingHead(trainer.model.classifier)
        return trainer

    runs = []
    for first in (False, True):
        trainer = make()
        if first:
            find_rho(trainer, **QUICK)
            assert (trainer.model.classifier.calls, trainer.model.classifier.log) == (0, [])
        trainer.train()
        runs.append(fingerprint(trainer) | {"calls": trainer.model.classifier.calls})
    assert differences(*runs) == []


# ----------------------------------------------------------------------------------------------------------------------
# Functions that close over the user's objects
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_hooks_that_close_over_modules_act_on_the_copies(tmp_path: Any) -> None:
    def make() -> Any:
        trainer = trainer_of(tmp_path)
        norm, calls = nn.BatchNorm1d(32), weakref.ref(trainer.model)
        pooler = trainer.model.bert.pooler
        pooler.register_forward_hook(lambda module, args, output: norm(output))
        pooler.register_forward_hook(lambda module, args, output: setattr(calls(), "calls", calls().calls + 1))
        trainer.model.calls, trainer.model.norm_of_hook = 0, [norm]
        trainer.model.classifier.weight.register_hook(lambda grad: grad * norm.running_var.mean())
        return trainer

    runs = []
    for first in (False, True):
        trainer = make()
        norm = trainer.model.norm_of_hook[0]
        if first:
            find_rho(trainer, **QUICK)
            assert (trainer.model.calls, norm.num_batches_tracked.item()) == (0, 0)
        trainer.train()
        assert trainer.model.calls == 14  # the second passes leave it as the first ones did
        runs.append(fingerprint(trainer) | {"mean": norm.running_mean, "var": norm.running_var})
    assert differences(*runs) == []


@pytest.mark.slow
def test_a_function_that_closes_over_the_trainer_acts_on_the_copy(tmp_path: Any) -> None:
    def make() -> Any:
        trainer = trainer_of(tmp_path)
        trainer.kept = []

        def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            trainer.kept.append(1)
            return SAMTrainer.compute_loss(trainer, model, inputs, *args, **kwargs) / (1 + 0.01 * len(trainer.kept))

        trainer.compute_loss = compute_loss
        return trainer

    assert_untouched(make)


# ----------------------------------------------------------------------------------------------------------------------
# What cannot be copied
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["iterator of a loader", "generator", "file", "lock"])
def test_what_cannot_be_copied_is_named_with_the_way_out(kind: str, tmp_path: Any) -> None:
    thing: Any = {
        "iterator of a loader": lambda: iter(DataLoader([1, 2])),
        "generator": lambda: (i for i in range(3)),
        "file": lambda: (tmp_path / "file").open("w"),
        "lock": threading.Lock,
    }[kind]()
    trainer = trainer_of(tmp_path)
    trainer.model.extra = {"things": [0, thing]}
    pattern = r"^trainer\.model\.extra\['things'\]\[1\] cannot be copied \(.*\).*find_rho\(lambda: SAMTrainer\(.*$"
    with pytest.raises(NotImplementedError, match=pattern) as caught:
        find_rho(trainer, **QUICK)
    assert "\n" not in str(caught.value)
    getattr(thing, "close", lambda: None)()


@pytest.mark.slow
def test_callbacks_and_what_only_evaluation_needs_are_not_copied(tmp_path: Any) -> None:
    trainer = trainer_of(tmp_path)
    trainer.callback_handler.callbacks[0].lock = threading.Lock()
    trainer.watch = trainer.callback_handler.callbacks[0]
    with Path(tmp_path / "metrics").open("w") as file:
        trainer.compute_metrics = DrawingLoss(file.write)  # type: ignore[arg-type]
        assert find_rho(trainer, **QUICK).losses
