# SPDX-License-Identifier: Apache-2.0
"""What do callbacks see and do at every event: the plain Trainer's weights and gradients, in the same order?"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Trainer, TrainerCallback

from hf_sam import SAMConfig, SAMTrainer
from tests.promises.runs import differences, fingerprint, trainer_for

EVENTS = sorted(name for name in dir(TrainerCallback) if name.startswith("on_"))
SLOW_SCOPES = ("batch", pytest.param("micro_batch", marks=pytest.mark.slow))


def digest(tensors: list[Tensor | None]) -> str:
    """Return a hash of all bits; a missing tensor counts too."""
    found = hashlib.sha256()
    for t in tensors:
        found.update(b"none" if t is None else t.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class AtEveryEvent(TrainerCallback):
    """Calls `look(event, model, control)` at every event there is."""

    def look(self, event: str, model: Any, control: Any) -> None:
        raise NotImplementedError


for _event in EVENTS:

    def _handler(self: Any, args: Any, state: Any, control: Any, *, _event: str = _event, **kwargs: Any) -> None:
        self.look(_event, kwargs.get("model"), control)

    setattr(AtEveryEvent, _event, _handler)


class Hashing(AtEveryEvent):
    """Notes every event with a hash of the weights and one of the gradients."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []

    def look(self, event: str, model: Any, control: Any) -> None:
        del control
        if model is not None:
            params = list(model.parameters())
            self.seen.append((event, digest(params), digest([p.grad for p in params])))

    def at(self, event: str) -> list[tuple[str, str]]:
        return [(weights, grads) for name, weights, grads in self.seen if name == event]


class Demanding(AtEveryEvent):
    """Asks at every event for a log, an evaluation and a checkpoint."""

    def look(self, event: str, model: Any, control: Any) -> None:
        del event, model
        control.should_log = control.should_evaluate = control.should_save = True


class Meddling(AtEveryEvent):
    """Evaluates, predicts and saves by itself in the middle of a step."""

    trainer: Any = None

    def look(self, event: str, model: Any, control: Any) -> None:
        del model, control
        if event in ("on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step"):
            self.trainer.evaluate()
            self.trainer.predict(self.trainer.eval_dataset)
            self.trainer.save_model(str(Path(self.trainer.args.output_dir) / "meddling"))


KINDS = {"hashing": Hashing, "demanding": Demanding, "meddling": Meddling}


def run(kind: str, tmp_path: Any, sam: SAMConfig | None, **settings: Any) -> tuple[Any, Hashing]:
    """Train with a callback of this kind and one that looks at what is there after it."""
    hashing, other = Hashing(), KINDS[kind]()
    callbacks = [hashing] if kind == "hashing" else [other, hashing]
    trainer: Any = trainer_for(
        settings.pop("family", "bert"),
        tmp_path / ("plain" if sam is None else f"{sam.rho}-{sam.sam_scope}"),
        sam=sam,
        gradient_accumulation_steps=3,
        max_steps=4,
        trainer_kwargs={"callbacks": callbacks, "eval_dataset": []},
        **settings,
    )
    trainer.eval_dataset = trainer.train_dataset[:5]
    other.trainer = trainer
    trainer.train()
    return trainer, hashing


@pytest.mark.slow
@pytest.mark.parametrize("scope", SLOW_SCOPES)
@pytest.mark.parametrize("family", ["resnet", pytest.param("bert", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_at_rho_zero_every_event_shows_what_the_plain_trainer_shows(
    kind: str, family: str, scope: str, tmp_path: Any
) -> None:
    plain, expected = run(kind, tmp_path, None, family=family)
    found = fingerprint(plain)
    sharp, seen = run(kind, tmp_path, SAMConfig(rho=0.0, sam_scope=scope), family=family)
    assert seen.seen == expected.seen
    assert differences(found, fingerprint(sharp)) == []
    names = {event for event, *_ in seen.seen}
    assert names >= {"on_train_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_log"}
    assert ("on_evaluate" in names) == (kind != "hashing")
    assert ("on_save" in names) == (kind == "demanding")


class Stepping(SAMTrainer):
    """Hashes what its optimizer really uses."""

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)
        self.before, self.after = [], []
        optimizer.register_step_pre_hook(lambda *_: self.before.append(self._hashes()))
        optimizer.register_step_post_hook(lambda *_: self.after.append(self._hashes()))
        return optimizer

    def _hashes(self) -> tuple[str, str]:
        params = list(self.model.parameters())
        return digest(params), digest([p.grad for p in params])


@pytest.mark.slow
@pytest.mark.parametrize("scope", SLOW_SCOPES)
@pytest.mark.parametrize("kind", KINDS)
def test_at_rho_above_zero_callbacks_see_what_the_optimizer_uses_and_leaves(
    kind: str, scope: str, tmp_path: Any
) -> None:
    sam = SAMConfig(rho=0.3, sam_scope=scope)
    trainer, seen = run(kind, tmp_path, sam, classes=(Trainer, Stepping))
    assert seen.at("on_pre_optimizer_step") == trainer.before
    assert seen.at("on_optimizer_step") == trainer.after
    weights = {before for before, _ in trainer.before} | {after for after, _ in trainer.after}
    assert {w for _, w, _ in seen.seen} == weights  # the start, and what each step of the optimizer left: no others
    assert len(weights) == 5
    gradients = [g for _, g in trainer.before]
    assert len(set(gradients)) == 4
    assert digest([None] * len(list(trainer.model.parameters()))) not in gradients


def test_every_checkpoint_that_a_callback_asks_for_holds_what_the_optimizer_left(tmp_path: Any) -> None:
    trainer, seen = run("demanding", tmp_path, SAMConfig(rho=0.3), classes=(Trainer, Stepping))
    folders = sorted(Path(trainer.args.output_dir).glob("checkpoint-*"))
    assert len(folders) == 4
    for folder, (expected, _) in zip(folders, trainer.after, strict=True):
        saved = load_file(folder / "model.safetensors")
        assert digest([saved[name] for name, _ in trainer.model.named_parameters()]) == expected
    # An evaluation after each step as well: its loss is that of the weights there are.
    assert len(seen.at("on_evaluate")) >= 4


def test_no_event_happens_in_a_descent_pass(tmp_path: Any) -> None:
    class Asking(AtEveryEvent):
        trainer: Any = None
        passes: list[bool] = []  # noqa: RUF012

        def look(self, event: str, model: Any, control: Any) -> None:
            del event, model, control
            if self.trainer is not None:
                self.passes.append(self.trainer.in_descent_pass)

    asking = Asking()
    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.3), max_steps=3)
    trainer.add_callback(asking)
    asking.trainer = trainer
    trainer.train()
    assert set(asking.passes) == {False}


class Deciding(TrainerCallback):
    """Stops in the middle of a window, or ends an epoch there."""

    def __init__(self, flag: str) -> None:
        self.flag, self.done = flag, False

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, kwargs
        if state.global_step == 1 and not self.done:
            self.done = True
            setattr(control, self.flag, True)


@pytest.mark.slow
@pytest.mark.parametrize("scope", SLOW_SCOPES)
@pytest.mark.parametrize("flag", ["should_training_stop", "should_epoch_stop"])
def test_a_callback_that_stops_in_the_middle_of_a_window(flag: str, scope: str, tmp_path: Any) -> None:
    """After an epoch that ended there the gradients spill into the next one's first window, as the plain Trainer's."""

    def train(sam: SAMConfig | None) -> Any:
        settings = {"gradient_accumulation_steps": 3, "trainer_kwargs": {"callbacks": [Deciding(flag)]}}
        trainer = trainer_for("resnet", tmp_path, sam=sam, num_train_epochs=3, **settings)
        trainer.train()
        return trainer

    plain = train(None)
    expected = fingerprint(plain)
    sharp = train(SAMConfig(rho=0.0, sam_scope=scope))
    assert differences(expected, fingerprint(sharp)) == []
    assert plain.state.global_step == (1 if flag == "should_training_stop" else 7)
