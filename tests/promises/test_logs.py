# SPDX-License-Identifier: Apache-2.0
"""Promises 6, 8 and 9: the clean loss is reported, a bad gradient does no harm, epsilon is measured."""

from __future__ import annotations

import copy
import logging
import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from hf_sam import SAMConfig, SAMTrainer
from tests.covering import covering
from tests.promises.runs import differences, fingerprint, trainer_for, weights
from tests.promises.test_one_epsilon import without_dropout

NAN = math.nan  # one object: it is not equal to another
KEYS = {"sam/rho", "sam/perturbed", "sam/sharpness", "sam/epsilon_norm", "sam/grad_cosine", "sam/skipped"}


def training_logs(trainer: Any) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_the_first_loss_is_the_plain_trainers_although_weights_were_perturbed(tmp_path: Any) -> None:
    plain = trainer_for("llama", tmp_path, sam=None, gradient_accumulation_steps=2, max_steps=1)
    plain.train()
    sharp = trainer_for("llama", tmp_path, sam=SAMConfig(rho=0.5), gradient_accumulation_steps=2, max_steps=1)
    sharp.train()
    assert training_logs(plain)[0]["loss"] == training_logs(sharp)[0]["loss"]
    assert training_logs(sharp)[0]["sam/sharpness"] > 1e-3


@pytest.mark.parametrize("scope", ["batch", "micro_batch"])
def test_every_key_is_in_every_training_log_and_in_no_other(scope: str, tmp_path: Any) -> None:
    sam = SAMConfig(rho=0.1, sam_scope=scope)
    trainer = trainer_for("bert", tmp_path, sam=sam, gradient_accumulation_steps=2, logging_steps=3)
    trainer.train()
    logs = training_logs(trainer)
    assert logs
    assert all(set(entry) >= KEYS for entry in logs)
    others = [entry for entry in trainer.state.log_history if "loss" not in entry]
    assert others
    assert not any(set(entry) & KEYS for entry in others)
    assert all(math.isclose(entry["sam/epsilon_norm"], 0.1, rel_tol=1e-5) for entry in logs)
    assert all(entry["sam/rho"] == 0.1 and entry["sam/skipped"] == 0 for entry in logs)


QUICK = ("late", "momentum")
ONE_PASS = {"sam/rho", "sam/perturbed", "sam/epsilon_norm", "sam/skipped"}
EVERY_RUN = {
    "late": ("bert", {"rho": 0.05, "sam_start": 0.5}, KEYS),
    "seldom": ("bert", {"rho": 0.05, "sam_every": 3}, KEYS),
    "looksam": ("bert", {"sam_variant": "looksam", "sam_variant_kwargs": {"k": 2}}, KEYS),
    "a gate": ("bert", {"rho": 0.05, "sam_gate": "gradient_norm"}, KEYS),
    "auto": ("bert", {"rho": "auto"}, KEYS),
    "a controller": ("bert", {"rho_schedule": "loss_budget"}, KEYS),
    "momentum": ("bert", {"rho": 0.5, "sam_variant": "momentum"}, ONE_PASS),
    "random": ("bert", {"sam_variant": "random", "sam_every": 2}, ONE_PASS),
    "nbar": ("lora", {"sam_variant": "nbar", "rho_schedule": "linear"}, {"sam/rho", "sam/perturbed", "sam/rescaled"}),
    "bi_lora": ("lora", {"sam_variant": "bi_lora"}, {"sam/rho", "sam/perturbed", "sam/epsilon_norm"}),
}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EVERY_RUN]
)
def test_every_training_log_of_a_run_has_the_same_keys_and_a_number_in_each(name: str, tmp_path: Any) -> None:
    """A logger that writes a table with the header of the first log would end the run otherwise."""
    family, settings, keys = EVERY_RUN[name]
    trainer = trainer_for(family, tmp_path, sam=SAMConfig(**settings), max_steps=6, warmup_steps=2)
    trainer.train()
    logs = training_logs(trainer)
    assert len(logs) == 6
    for entry in logs:
        ours = {key: value for key, value in entry.items() if key.startswith("sam/")}
        assert ours.keys() == keys
        assert all(type(value) is float and math.isfinite(value) for value in ours.values())


@pytest.mark.parametrize(("variant", "key"), [("nbar", "sam/rescaled"), ("bi_lora", "sam/epsilon_norm")])
def test_variants_that_do_not_perturb_log_what_they_do(variant: str, key: str, tmp_path: Any) -> None:
    pytest.importorskip("peft")
    trainer = trainer_for(
        "lora", tmp_path, sam=SAMConfig(sam_variant=variant), max_steps=3, lr_scheduler_type="constant"
    )
    trainer.train()
    logs = training_logs(trainer)
    rho = logs[0]["sam/rho"]
    expected = (
        [rho * 1e-2] * 3 if variant == "nbar" else [0.0, rho, rho]
    )  # alpha * lr; Bi-LoRA begins with a plain step
    assert [entry[key] for entry in logs] == pytest.approx(expected, rel=1e-4)
    assert [entry["sam/perturbed"] for entry in logs] == [1.0] * 3


def test_logs_after_a_callback_has_switched_sam_off_say_so(tmp_path: Any) -> None:
    class Off(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                args.sam_variant = "none"

    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.05), max_steps=4, trainer_kwargs={"callbacks": [Off()]})
    trainer.train()
    assert [entry["sam/perturbed"] for entry in training_logs(trainer)] == [1.0, 1.0, 0.0, 0.0]
    assert [entry["sam/grad_cosine"] == 1.0 for entry in training_logs(trainer)] == [False, False, True, True]


def hand_computed(
    model: nn.Module, batches: list[dict[str, torch.Tensor]], items: int, rho: float
) -> tuple[float, float]:
    """Return L(w + epsilon) - L(w) and cos(g, h) of one window, in float64, one formula at a time."""
    model = copy.deepcopy(model).double()
    params = list(model.parameters())

    def loss_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        losses = []
        for batch in batches:
            logits = model(input_ids=batch["input_ids"]).logits[:, :-1].double()
            targets = batch["labels"][:, 1:]
            losses.append(
                nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)
            )
        loss = sum(losses) / items
        return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)])

    clean, g = loss_and_gradient()
    vector = nn.utils.parameters_to_vector(params)
    nn.utils.vector_to_parameters((vector + rho * g / g.norm()).detach(), params)
    perturbed, h = loss_and_gradient()
    return (perturbed - clean).item(), (g @ h / (g.norm() * h.norm())).item()


@pytest.mark.parametrize("accumulation", [1, 3])
def test_sharpness_and_cosine_are_what_the_formulas_say(accumulation: int, tmp_path: Any) -> None:
    class Recording(SAMTrainer):
        def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Any:
            self.batches.append({k: v.clone() for k, v in inputs.items()})
            self.items = int(num_items_in_batch)  # the Trainer's own count: not every version shifts the labels first
            return super().training_step(model, inputs, num_items_in_batch)

    trainer = trainer_for(
        "llama",
        tmp_path,
        sam=SAMConfig(rho=0.2),
        classes=(SAMTrainer, Recording),
        prepare=without_dropout,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
    )
    trainer.batches = []
    start = copy.deepcopy(trainer.model)
    trainer.train()
    rise, cosine = hand_computed(start, trainer.batches, trainer.items, rho=0.2)
    entry = training_logs(trainer)[0]
    assert len(trainer.batches) == accumulation
    assert entry["sam/sharpness"] == pytest.approx(rise, rel=1e-3)
    assert entry["sam/grad_cosine"] == pytest.approx(cosine, abs=1e-4)


def test_asam_measures_the_cosine_of_the_gradients_not_of_epsilon(tmp_path: Any) -> None:
    """At a vanishing radius both passes have the same gradient, while epsilon points elsewhere."""
    for eta in (0.01, 0.0):
        sam = SAMConfig(rho=1e-3, sam_variant="asam", sam_variant_kwargs={"eta": eta})
        trainer = trainer_for("resnet", tmp_path, sam=sam, max_steps=2)
        trainer.train()
        assert training_logs(trainer)[-1]["sam/grad_cosine"] == pytest.approx(1.0, abs=1e-2)


class BadGradient(SAMTrainer):
    """Multiplies the loss at optimizer step 1 by a number that makes its gradient zero, infinite or nan."""

    factor = 0.0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        return loss * self.factor if self.state.global_step == 1 else loss


# Every factor with both variants, and each of them with both scopes.
@pytest.mark.parametrize(
    ("factor", "variant", "scope"),
    covering(
        product([0.0, 1e-30, math.inf, NAN], ["sam", "asam"], ["batch", "micro_batch"]),
        fast=[
            *((factor, "sam", "batch") for factor in (0.0, math.inf)),
            *((factor, "sam", "micro_batch") for factor in (1e-30, NAN)),
            *((factor, "asam", "micro_batch") for factor in (0.0, math.inf)),
            *((factor, "asam", "batch") for factor in (1e-30, NAN)),
        ],
    ),
)
def test_a_bad_gradient_leaves_epsilon_out_and_is_counted(
    factor: float, variant: str, scope: str, tmp_path: Any
) -> None:
    class Watching(BadGradient):
        carried = ("during",)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            if self.in_descent_pass and self.state.global_step == 1:
                self.during.append(weights(self))
            return super().compute_loss(*args, **kwargs)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            self.before = weights(self)
            return super().training_step(*args, **kwargs)

    watching = type("Watching", (Watching,), {"factor": factor})
    trainer = trainer_for(
        "bert",
        tmp_path,
        sam=SAMConfig(rho=0.5, sam_variant=variant, sam_scope=scope, sam_check_repeatable="off"),
        classes=(SAMTrainer, watching),
        gradient_accumulation_steps=2,
        max_steps=2,
        max_grad_norm=0.0,
        optim="sgd",
    )
    trainer.during = []
    trainer.train()
    bad = training_logs(trainer)[1]
    assert len(trainer.during) == 2
    assert all(torch.equal(seen, trainer.before) for seen in trainer.during)
    assert bad["sam/skipped"] == 1.0
    assert [bad[f"sam/{name}"] for name in ("sharpness", "epsilon_norm", "grad_cosine")] == [0.0, 0.0, 1.0]
    assert training_logs(trainer)[0]["sam/skipped"] == 0.0


def test_at_rho_above_zero_the_random_streams_still_end_where_the_plain_trainers_do(tmp_path: Any) -> None:
    plain = trainer_for("bert", tmp_path, sam=None, gradient_accumulation_steps=3)
    plain.train()
    expected = fingerprint(plain)
    sharp = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.3), gradient_accumulation_steps=3)
    sharp.train()
    changed = differences(expected, fingerprint(sharp))
    assert not any("streams" in name for name in changed)
    assert any("weight" in name for name in changed)  # it did train differently


def test_batch_statistics_count_the_clean_passes_only(tmp_path: Any) -> None:
    trainer = trainer_for("resnet", tmp_path, sam=SAMConfig(rho=0.3), gradient_accumulation_steps=2)
    trainer.train()
    counts = {b.item() for n, b in trainer.model.named_buffers() if "num_batches_tracked" in n}
    assert counts == {14}  # 26 examples in batches of four, two epochs: one count per micro-batch


def test_batch_statistics_are_those_of_the_clean_passes(tmp_path: Any) -> None:
    """With learning rate zero the clean passes are the plain Trainer's; the perturbed ones, at rho > 0, are not."""
    settings = {"gradient_accumulation_steps": 2, "learning_rate": 0.0, "optim": "sgd"}
    plain = trainer_for("resnet", tmp_path, sam=None, **settings)
    plain.train()
    sharp = trainer_for("resnet", tmp_path, sam=SAMConfig(rho=0.5), **settings)
    sharp.train()
    found = dict(sharp.model.named_buffers())
    assert all(torch.equal(buffer, found[name]) for name, buffer in plain.model.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_weights_are_warned_about_once_with_the_measured_ratio(
    dtype: torch.dtype, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho=1e-5), prepare=lambda m: m.to(dtype), logging_steps=7)
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        trainer.train()
    (record,) = [r for r in caplog.records if r.name.startswith("hf_sam")]
    asked, realised, ratio = record.args
    assert asked == pytest.approx(1e-5, rel=0.02)
    assert ratio == pytest.approx(realised / asked)
    assert ratio < 0.9  # the radius is so small that rounding eats part of it
    assert "dtype=torch.float32" in record.getMessage()
    assert "bf16=True" in record.getMessage()


def test_32_bit_weights_are_not_warned_about(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.001), bf16=True, max_steps=2).train()
    assert not [r for r in caplog.records if r.name.startswith("hf_sam")]


def test_nothing_of_ours_lives_in_the_optimizers_state(tmp_path: Any) -> None:
    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.1, sam_variant="asam"))
    trainer.train()
    keys = {key for entry in trainer.optimizer.state_dict()["state"].values() for key in entry}
    assert keys == {"step", "exp_avg", "exp_avg_sq"}
