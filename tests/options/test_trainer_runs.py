# SPDX-License-Identifier: Apache-2.0
"""Do the options that steer a whole run do with SAM what they do without: stop it, start it again, watch over it?"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from hf_sam import SAMConfig, SAMTrainer
from tests.models import build
from tests.options.pairs import assert_climbs_at_rho, assert_plain_at_rho_zero, maker, trainable, trainer_on
from tests.promises.runs import differences, fingerprint

EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}


@pytest.mark.slow
def test_early_stopping_stops_where_the_plain_trainer_does(tmp_path: Any) -> None:
    def make(sam: SAMConfig | None) -> Trainer:
        settings = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1, "max_steps": 12}
        kwargs = {"callbacks": [EarlyStoppingCallback(early_stopping_patience=2)]}
        folder = tmp_path / str(sam and sam.rho)
        settings |= {"learning_rate": 0.5, "lr_scheduler_type": "constant", **EVALUATED}
        return maker(folder, "bert", trainer_kwargs=kwargs, **settings)(sam)

    plain, sharp = assert_plain_at_rho_zero(make)
    climbed = make(SAMConfig(rho=0.05))
    climbed.train()
    for trainer in (plain, sharp, climbed):
        assert trainer.state.global_step < 12
        assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)


class OnceFull:
    """Runs out of memory in its first pass over more than three examples, so that a smaller batch is tried."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.sizes = [*getattr(self, "sizes", []), len(inputs["labels"])]
        if len(self.sizes) > 3 and len(inputs["labels"]) > 3:
            raise RuntimeError("CUDA out of memory.")
        return super().compute_loss(model, inputs, *args, **kwargs)


class PlainFull(OnceFull, Trainer):
    pass


class SAMFull(OnceFull, SAMTrainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self.in_descent_pass:
            return Trainer.compute_loss(self, *args, **kwargs)
        return super().compute_loss(*args, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["batch", pytest.param("micro_batch", marks=pytest.mark.slow)])
def test_a_smaller_batch_is_found_as_the_plain_trainer_finds_it(scope: str, tmp_path: Any) -> None:
    """It fails in the second micro-batch of a window, after a step was taken."""
    settings = {"auto_find_batch_size": True, "classes": (PlainFull, SAMFull), "max_steps": 5, "num_train_epochs": 2}
    make = maker(tmp_path, **settings)
    plain = make(None)
    plain.train()
    expected = fingerprint(plain)
    sharp = make(SAMConfig(rho=0.0, sam_scope=scope))
    sharp.train()
    assert differences(expected, fingerprint(sharp)) == []
    assert plain.sizes == sharp.sizes
    assert plain.sizes[3] == 4
    assert set(plain.sizes[4:]) <= {1, 2, 3}


class Shifted:
    """Adds something that is not finite to the loss of step 1; its gradient stays what it is."""

    shift = float("inf")

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        return loss + self.shift if self.state.global_step == 1 else loss


class PlainShifted(Shifted, Trainer):
    pass


class SAMShifted(Shifted, SAMTrainer):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("keep_out", [True, False])
@pytest.mark.parametrize("shift", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_is_kept_out_of_the_logs_or_not(shift: float, keep_out: bool, tmp_path: Any) -> None:
    classes = tuple(type(c.__name__, (c,), {"shift": shift}) for c in (PlainShifted, SAMShifted))
    make = maker(tmp_path, logging_nan_inf_filter=keep_out, classes=classes)
    _, sharp = assert_plain_at_rho_zero(make)
    entry = sharp.state.log_history[1]
    assert torch.isfinite(torch.tensor(entry["loss"])) == keep_out
    # inf - inf is no rise: the last one that is known stands there. The step itself is a good one.
    assert entry["sam/sharpness"] == sharp.state.log_history[0]["sam/sharpness"]
    assert entry["sam/skipped"] == 0.0


@pytest.mark.slow
def test_memory_metrics_are_there_and_change_nothing(tmp_path: Any) -> None:
    pytest.importorskip("psutil")
    runs = {}
    for sam in (None, SAMConfig(rho=0.0)):
        trainer = maker(tmp_path, skip_memory_metrics=False, max_steps=2)(sam)
        trainer.train()
        runs[sam and sam.rho] = fingerprint(trainer)
        assert any("train_mem_cpu" in key for key in trainer.state.log_history[-1])
    different = differences(runs[None], runs[0.0])
    assert different in ([], ["logs"])  # the logs hold the memory


def hooks(model: nn.Module) -> list[int]:
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


class Broken(SAMTrainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self.in_descent_pass:
            raise ZeroDivisionError
        return super().compute_loss(*args, **kwargs)


def test_neftunes_hook_is_gone_after_training_and_an_error_leaves_no_hook_of_ours(tmp_path: Any) -> None:
    make = maker(tmp_path, neftune_noise_alpha=5.0)
    trainer = make(SAMConfig(rho=0.1))
    before = hooks(trainer.model)
    trainer.train()
    assert hooks(trainer.model) == before
    broken = maker(tmp_path, neftune_noise_alpha=5.0, classes=(Trainer, Broken))(SAMConfig(rho=0.1))
    with pytest.raises(ZeroDivisionError):
        broken.train()
    # The plain Trainer leaves NEFTune's own hook behind when training is interrupted: that one, and no more.
    assert sum(hooks(broken.model)) == sum(before) + 1


class Seen(TrainerCallback):
    def __init__(self) -> None:
        self.first: list[Tensor] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        del args, control, kwargs
        if state.global_step == 0:
            self.first.append(torch.cat([p.detach().flatten() for p in model.parameters()]))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["sam", "friendly"])
def test_a_model_that_is_made_anew_for_each_training(variant: str, tmp_path: Any) -> None:
    def runs(sam: SAMConfig | None) -> list[dict[str, Any]]:
        data, seen = build("bert")[1], Seen()
        kwargs = {"model_init": lambda: build("bert")[0], "callbacks": [seen]}
        trainer = trainer_on(None, data, tmp_path, sam=sam, trainer_kwargs=kwargs)
        found = []
        for _ in range(2):
            trainer.train()
            found.append(fingerprint(trainer))
        assert torch.equal(*seen.first)
        return found

    expected = runs(None)
    found = runs(SAMConfig(rho=0.0, sam_variant=variant))
    assert [differences(*pair) for pair in zip(expected, found, strict=True)] == [[], []]
    first, second = runs(SAMConfig(rho=0.1, sam_variant=variant))
    assert differences(first, second) == []
    assert differences(expected[0], first)


@pytest.mark.slow
def test_full_determinism(tmp_path: Any) -> None:
    make = maker(tmp_path, full_determinism=True)
    try:
        assert_plain_at_rho_zero(make)
        assert_climbs_at_rho(make)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


class Terminated(SAMTrainer):
    """Gets a SIGTERM in the descent pass of step 2, where its weights are perturbed."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.before = trainable(self.model)
        return super().training_step(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self.in_descent_pass and self.state.global_step == 2:
            assert not all(torch.equal(p, self.before[name]) for name, p in self.model.named_parameters())
            os.kill(os.getpid(), signal.SIGTERM)
        return super().compute_loss(*args, **kwargs)


def test_a_checkpoint_made_on_sigterm_in_a_descent_pass_holds_the_clean_weights(tmp_path: Any) -> None:
    make = maker(tmp_path, "bert", enable_jit_checkpoint=True, classes=(Trainer, Terminated))
    old = signal.getsignal(signal.SIGTERM)
    try:
        trainer: Any = make(SAMConfig(rho=0.5))
        (callback,) = [c for c in trainer.callback_handler.callbacks if hasattr(c, "jit_manager")]
        callback.jit_manager.kill_wait = 0
        trainer.train()
    finally:
        signal.signal(signal.SIGTERM, old)
    assert trainer.state.global_step < 4
    (folder,) = Path(trainer.args.output_dir).glob("checkpoint-*")
    saved = load_file(folder / "model.safetensors")
    # The signal came in the second window's last micro-batch: the optimizer has stepped since, or is about to.
    now = {name: p.detach() for name, p in trainer.model.named_parameters()}
    assert any(all(torch.equal(saved[name], state[name]) for name in now) for state in (trainer.before, now))
