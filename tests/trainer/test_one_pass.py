# SPDX-License-Identifier: Apache-2.0
"""How long do the weights stay perturbed in a step of one pass, and who can see them?"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate.state import GradientState
from transformers import TrainerCallback

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.step.perturbation import Perturbation
from tests.compare import bits, same_bits
from tests.faults.injector import EveryLine, Fault, Injector
from tests.promises.runs import differences, fingerprint, trainer_for

ACCUMULATION = 4
PASSES = {"momentum": 3 + 4, "random": 4 + 3 + 4}
"""At perturbed weights, in three steps of which the second ends an epoch; before the first there is no moment."""
MOMENTUM = SAMConfig(sam_variant="momentum", sam_start=0.0, rho=0.5)


class Stop(Exception):
    """Raised on purpose."""


class OutOfMemory(RuntimeError):
    """As CUDA says it, which makes `auto_find_batch_size` try a smaller batch."""

    def __init__(self) -> None:
        super().__init__("CUDA out of memory.")


class AtEnd(TrainerCallback):
    """Looks at the weights after every micro-batch and step."""

    def __init__(self) -> None:
        self.seen: list[list[torch.Tensor]] = []

    def on_substep_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.seen.append(bits(model.parameters()))

    def on_step_begin(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.start = bits(model.parameters())
        self.seen = []

    def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        assert all(same_bits(seen, self.start) for seen in [*self.seen, bits(model.parameters())])


def climbs(trainer: Any, *, error: type[BaseException] | None = None) -> int:
    """Train; return how often the weights moved."""
    with mock.patch.object(Perturbation, "apply", autospec=True, side_effect=Perturbation.apply) as apply:
        if error is None:
            trainer.train()
        else:
            with pytest.raises(error):
                trainer.train()
    return apply.call_count


def make(folder: Path, sam: SAMConfig = MOMENTUM, cls: type = SAMTrainer, **settings: Any) -> Any:
    settings = {"gradient_accumulation_steps": ACCUMULATION, "max_steps": 3, **settings}
    return trainer_for("bert", folder, sam=sam, classes=(SAMTrainer, cls), **settings)


def test_the_weights_move_once_an_optimizer_step(tmp_path: Path) -> None:
    assert climbs(make(tmp_path)) == 2  # the first step has no moment yet


@pytest.mark.parametrize("variant", ["momentum", "random"])
def test_the_result_is_that_of_moving_at_every_micro_batch(variant: str, tmp_path: Path) -> None:
    found = []
    for callbacks in ([], [AtEnd()]):
        sam = SAMConfig(sam_variant=variant, sam_start=0.0, rho=0.5)
        trainer = make(tmp_path, sam, trainer_kwargs={"callbacks": callbacks})
        moves = climbs(trainer)
        steps = 2 if variant == "momentum" else 3
        assert moves == (PASSES[variant] if callbacks else steps)
        found.append(fingerprint(trainer))
    assert not differences(*found)


class OwnStep(SAMTrainer):
    """Looks at the weights after its training step."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        before = bits(self.model.parameters())
        loss = super().training_step(*args, **kwargs)
        assert same_bits(bits(self.model.parameters()), before)
        return loss


class OwnBatches(SAMTrainer):
    """Reads the weights when a micro-batch is asked for."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, count = super().get_batch_samples(*args, **kwargs)
        trainer, before = self, bits(self.model.parameters())

        class Looking(list[Any]):
            def __iter__(self) -> Any:
                for batch in list.__iter__(self):
                    assert same_bits(bits(trainer.model.parameters()), before)
                    yield batch

        return Looking(batches), count


class OwnCount(SAMTrainer):
    """Is asked about every micro-batch after its pass."""

    def floating_point_ops(self, inputs: Any) -> int:
        return 0


@pytest.mark.parametrize("cls", [OwnStep, OwnBatches, OwnCount])
def test_a_trainer_with_code_between_the_passes_finds_the_weights_back(cls: type, tmp_path: Path) -> None:
    assert climbs(make(tmp_path, cls=cls)) == PASSES["momentum"]


class Struck(SAMTrainer):
    """Fails in the third micro-batch of step 2, in the pass; or right before it, in transformers' code."""

    error: type[BaseException] = Stop
    between = False
    count = 0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.count += self.state.global_step == 2
        if self.count == 3 and not self.between:
            raise self.error
        return super().compute_loss(*args, **kwargs)

    def struck(self, state: Any, value: bool) -> None:
        """Stand in for `GradientState._set_sync_gradients`."""
        if self.count == 2 and self.between:
            self.count, self.moved = 100, not same_bits(bits(self.model.parameters()), self.known.weights)
            raise self.error
        state.sync_gradients = value


class Known(TrainerCallback):
    """Keeps the weights of the last optimizer step, and compares those that training starts (again) from."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] | None = None
        self.starts: list[bool] = []

    def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.weights = bits(model.parameters())

    def on_train_begin(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.starts.append(self.weights is None or same_bits(bits(model.parameters()), self.weights))


def struck(folder: Path, **attributes: Any) -> Any:
    trainer = make(folder, cls=type("Struck", (Struck,), attributes), auto_find_batch_size=True)
    trainer.known = Known()
    trainer.add_callback(trainer.known)
    return trainer


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("between", [False, True])
def test_an_error_in_the_middle_of_a_step_leaves_the_weights_where_they_were(
    between: bool, error: type[BaseException], tmp_path: Path
) -> None:
    trainer = struck(tmp_path, error=error, between=between)
    with mock.patch.object(GradientState, "_set_sync_gradients", lambda state, value: trainer.struck(state, value)):
        climbs(trainer, error=error)
    assert trainer.state.global_step == 2
    assert trainer.moved if between else True
    assert same_bits(bits(trainer.model.parameters()), trainer.known.weights)


def test_a_smaller_batch_is_tried_from_weights_that_are_back(tmp_path: Path) -> None:
    trainer = struck(tmp_path, error=OutOfMemory, between=True)
    with mock.patch.object(GradientState, "_set_sync_gradients", lambda state, value: trainer.struck(state, value)):
        trainer.train()
    assert trainer.moved
    assert trainer.known.starts == [True, True]


@pytest.mark.parametrize("flag", ["should_epoch_stop", "should_training_stop"])
def test_a_loop_that_is_told_to_stop_in_the_middle_of_a_step_ends_with_the_weights_back(
    flag: str, tmp_path: Path
) -> None:
    class Stopping(SAMTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.count += self.state.global_step == 2
            if self.count == 2:
                setattr(self.control, flag, True)
            return super().compute_loss(*args, **kwargs)

    class Look(TrainerCallback):
        def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
            self.known = bits(model.parameters())

        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
            ends.append(same_bits(bits(model.parameters()), self.known))
            control.should_training_stop = state.global_step == 2 and trainer.count > 0

    ends: list[bool] = []
    trainer = make(tmp_path, cls=Stopping, trainer_kwargs={"callbacks": [Look()]})
    trainer.count = 0
    trainer.train()
    assert ends == [True, True]
    assert trainer.count == 2


def test_after_train_every_micro_batch_brings_the_weights_back(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.train()
    before = bits(trainer.model.parameters())
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(4)])
    trainer.accelerator.gradient_state._set_sync_gradients(False)  # others of the step would follow
    trainer.current_gradient_accumulation_steps, trainer.control.should_training_stop = ACCUMULATION, False
    with mock.patch.object(Perturbation, "apply", autospec=True, side_effect=Perturbation.apply) as apply:
        trainer.training_step(trainer.model, batch)
    assert apply.call_count == 1
    assert same_bits(bits(trainer.model.parameters()), before)


FILES = ("one_pass.py", "perturbation.py", "training_step.py", "trainer.py", "run_state.py", "micro_batches.py")


@pytest.mark.everything
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one that lands in a generator's end
def test_the_weights_are_back_wherever_an_interrupt_lands(tmp_path: Path) -> None:
    def run(injector: Injector) -> tuple[Any, Known]:
        known = Known()
        trainer = make(tmp_path, gradient_accumulation_steps=2, max_steps=2, trainer_kwargs={"callbacks": [known]})
        known.weights = bits(trainer.model.parameters())
        with contextlib.suppress(KeyboardInterrupt), EveryLine(injector):
            trainer.train()
        return trainer, known

    noting = Injector()
    run(noting)
    places = {o.place: o for o in noting.found if o.place.split()[0] in FILES}  # the last time that each line runs
    places |= {f"{o.place} first": o for o in reversed(noting.found) if o.place.split()[0] in FILES}
    lost = []
    for at in places.values():
        injector = Injector(Fault(at, "KeyboardInterrupt"))
        trainer, known = run(injector)
        if not same_bits(bits(trainer.model.parameters()), known.weights or []):
            lost.append(at.place)
    assert len(places) > 100
    assert lost == []
