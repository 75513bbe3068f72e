# SPDX-License-Identifier: Apache-2.0
"""How much of the package does a plain SAM step go through, and what does SAM leave on the user's trainer?"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import Trainer, TrainerCallback

import hf_sam
from hf_sam import SAMConfig, SAMTrainer
from tests.promises.runs import differences, fingerprint, trainer_for

PACKAGE = Path(hf_sam.__file__).parent
FILES, CALLS = 9, 250
STEADY = 3  # by then an optimizer has shown its state
FORMER = (
    *("_policy", "_sync", "_chosen", "_averages", "_sampler", "_told_realised_norm", "_told_portion", "_plan"),
    *("_optimizer_checks", "_window", "_descents", "_ends_window", "_losses", "_rises"),
)
FORMER_METHODS = (
    *("_forget_run", "_forget_window", "_sam_policy", "_sam_moment", "_gradient_sync", "_sam_parameters"),
    *("_sam_chosen", "_check_optimizer", "_loss_scale", "_sam_rounding", "_plain_step", "_ascent_pass"),
    *("_average_chosen", "_ascend_on_a_portion", "_items_of", "_count_items", "_closes", "_sam_training_step"),
    *("_two_passes", "_descend", "_one_pass", "_is_measured", "_take_in", "_end_window", "_tell_realised_norm"),
    *("_each_has_its_own",),
)


class Counting(SAMTrainer):
    """Counts the calls into each file of the package during one training step."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step != STEADY:
            return super().training_step(*args, **kwargs)
        self.calls: Counter[str] = Counter()

        def note(frame: FrameType, event: str, _: Any) -> None:
            path = Path(frame.f_code.co_filename)
            if event == "call" and path.is_relative_to(PACKAGE):
                self.calls[str(path.relative_to(PACKAGE))] += 1

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            return super().training_step(*args, **kwargs)
        finally:
            sys.setprofile(before)


def counted(folder: Path, **settings: Any) -> Counter[str]:
    sam = SAMConfig(**{k: settings.pop(k) for k in list(settings) if k in SAMConfig.__dataclass_fields__})
    trainer = trainer_for("bert", folder, sam=sam, classes=(SAMTrainer, Counting), max_steps=STEADY + 1, **settings)
    trainer.train()
    return trainer.calls


@pytest.mark.parametrize("logging_steps", [1, 500], ids=["measured", "not measured"])
def test_a_steady_step_reads_like_the_paper(logging_steps: int, tmp_path: Path) -> None:
    calls = counted(tmp_path, rho=0.05, logging_steps=logging_steps)
    assert {"trainer/trainer.py", "trainer/training_step.py", "step/two_pass.py"} <= set(calls)
    assert {"variants/sam.py", "step/perturbation.py"} <= set(calls)
    assert len(calls) <= FILES, calls
    assert sum(calls.values()) <= CALLS, calls


@pytest.mark.parametrize("settings", [{}, {"sam_scope": "micro_batch"}, {"gradient_accumulation_steps": 2}], ids=str)
def test_one_process_with_whole_weights_enters_no_other_engine(settings: dict[str, Any], tmp_path: Path) -> None:
    calls = counted(tmp_path, rho=0.05, **settings)
    assert not [path for path in calls if path.startswith("engines/") or path == "vectors/shards.py"]


def test_the_settings_are_read_once_a_run_and_again_when_one_has_changed(tmp_path: Path) -> None:
    class Change(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.args.rho = 0.1 if state.global_step >= 4 else 0.05

    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.05), gradient_accumulation_steps=2, max_steps=6)
    trainer.add_callback(Change())
    read, reads = type(trainer._sam).read_settings, []

    def noted(run: Any, trainer: Any) -> Any:
        reads.append(trainer.state.global_step)
        return read(run, trainer)

    with mock.patch.object(type(trainer._sam), "read_settings", noted):
        trainer.train()
    assert reads == [0, 4]
    logged = [entry["sam/rho"] for entry in trainer.state.log_history if "sam/rho" in entry]
    assert logged == pytest.approx([0.05] * 4 + [0.1] * 2)


def test_settings_that_are_out_of_range_end_train_before_it_begins(tmp_path: Path) -> None:
    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.05), max_steps=2)
    trainer.args.rho = -1.0
    with pytest.raises(ValueError, match=r"SAMConfig\(rho=\.\.\.\)"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("trained", [False, True])
def test_sam_adds_one_attribute_to_the_trainer(trained: bool, tmp_path: Path) -> None:
    sharp, plain = (trainer_for("bert", tmp_path, sam=sam, max_steps=2) for sam in (SAMConfig(rho=0.05), None))
    if trained:
        sharp.train(), plain.train()
    assert set(vars(sharp)) - set(vars(plain)) == {"_sam"}


def test_a_trainer_with_attributes_of_all_former_names_trains_as_any_other(tmp_path: Path) -> None:
    class OwnNames(SAMTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._mine = {name: f"the user's {name}" for name in FORMER}
            vars(self).update(self._mine)
            super().__init__(*args, **kwargs)

    def never(*args: Any, **kwargs: Any) -> None:
        pytest.fail("the user's own method was called")

    found = []
    for cls in (SAMTrainer, type("OwnNames", (OwnNames,), dict.fromkeys(FORMER_METHODS, never))):
        trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.05), classes=(Trainer, cls), max_steps=4)
        trainer.train()
        found.append(fingerprint(trainer))
    assert not differences(*found)
    assert {name: vars(trainer)[name] for name in FORMER} == trainer._mine


def test_a_parameter_that_a_callback_has_exchanged_is_perturbed_too(tmp_path: Path) -> None:
    class Exchange(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, optimizer: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                old, new = model.classifier.weight, torch.nn.Parameter(model.classifier.weight.detach().clone())
                model.classifier.weight = new
                for group in optimizer.param_groups:
                    group["params"] = [new if p is old else p for p in group["params"]]

    seen: list[tuple[int, bool, torch.Tensor]] = []

    class Watching(SAMTrainer):
        def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append((self.state.global_step, self.in_descent_pass, model.classifier.weight.detach().clone()))
            return super().compute_loss(model, *args, **kwargs)

    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.05), classes=(SAMTrainer, Watching), max_steps=4)
    trainer.add_callback(Exchange())
    trainer.train()
    at = {(step, second): weight for step, second, weight in seen}
    assert all(not torch.equal(at[step, False], at[step, True]) for step in range(4))
