# SPDX-License-Identifier: Apache-2.0
"""Does each step make the passes that were planned, over the examples and parameters that were asked for?"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.radius.auto import Auto
from tests.promises.runs import differences, fingerprint, trainer_for, weights
from tests.promises.test_logs import training_logs
from tests.tolerances import RELATIVE

SGD = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
ONE_STEP = {"max_steps": 1, **SGD}


def without_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


class Counting(SAMTrainer):
    """Notes every pass: the step, the part of the step, the number of examples, and whether they count."""

    carried = ("passes", "seen")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.passes: list[tuple[int, str, int, bool]] = []
        self.seen: list[Tensor] = []
        super().__init__(*args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        which = "descent" if self.in_descent_pass else "ascent"
        self.passes.append((self.state.global_step, which, len(inputs["input_ids"]), self.counts_examples))
        self.seen.append(weights(self))
        return super().compute_loss(model, inputs, *args, **kwargs)


def counted(folder: Path, family: str = "bert", **settings: Any) -> Counting:
    given = {k: settings.pop(k) for k in list(settings) if k in SAMConfig.__dataclass_fields__}
    sam = SAMConfig(sam_check_repeatable="off", **given)  # which is passes of its own
    trainer = trainer_for(family, folder, sam=sam, classes=(SAMTrainer, Counting), prepare=without_dropout, **settings)
    trainer.train()
    return trainer


# ----------------------------------------------------------------------------------------------------------------------
# The gate
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    ("gate", "open_steps"),
    [
        ({"sam_start": 0.5}, {3, 4, 5}),
        ({"sam_stop": 0.5}, {0, 1, 2}),
        ({"sam_start": "warmup"}, {2, 3, 4, 5}),
        ({"rho_schedule": "warmup"}, {2, 3, 4, 5}),
        ({"sam_every": 4}, {0, 4}),
        ({"sam_every": 2, "sam_start": 0.5}, {4}),
        ({"rho_schedule": "linear", "rho_schedule_kwargs": {"start": 0, "end": 1}}, {1, 2, 3, 4, 5}),
        ({"sam_variant": "looksam", "sam_variant_kwargs": {"k": 4}}, {0, 4}),
    ],
    ids=str,
)
def test_a_gated_off_step_is_one_pass(gate: dict[str, Any], open_steps: set[int], tmp_path: Path) -> None:
    settings = {"max_steps": 6, "warmup_steps": 2, "gradient_accumulation_steps": 2}
    trainer = counted(tmp_path, wrap_data=lambda data: data[:24], rho=0.05, **settings, **gate)
    for step in range(6):
        kinds = [kind for at, kind, _, _ in trainer.passes if at == step]
        assert kinds == ["ascent", "ascent"] + ["descent", "descent"] * (step in open_steps)
    assert [log["sam/perturbed"] for log in training_logs(trainer)] == [float(step in open_steps) for step in range(6)]


def test_a_gate_that_never_opens_is_the_plain_trainer(tmp_path: Path) -> None:
    never = {"sam_gate": "gradient_norm", "sam_gate_kwargs": {"c_start": 1e9, "c_end": 1e9, "delta": 0.5}}
    plain = trainer_for("bert", tmp_path, sam=None, max_steps=6)
    plain.train()
    sharp = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.5, **never), max_steps=6)
    sharp.train()
    moved = differences(fingerprint(plain), fingerprint(sharp))
    assert any(name.startswith("weight") for name in moved), "the first step has no past, and perturbs"
    assert [log["sam/perturbed"] for log in training_logs(sharp)] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_momentum_waits_for_the_end_of_warm_up_unless_told_otherwise(tmp_path: Path) -> None:
    waits = counted(tmp_path, sam_variant="momentum", rho=0.5, max_steps=4, warmup_steps=2)
    assert [log["sam/rho"] for log in training_logs(waits)] == [0.0, 0.0, 0.5, 0.5]
    at_once = counted(tmp_path, sam_variant="momentum", rho=0.5, sam_start=0.0, max_steps=4, warmup_steps=2)
    assert [log["sam/rho"] for log in training_logs(at_once)] == [0.0, 0.5, 0.5, 0.5], "AdamW has no m at first"
    assert [log["sam/perturbed"] for log in training_logs(at_once)] == [0.0, 1.0, 1.0, 1.0]


def test_one_pass_directions_make_one_pass_at_the_same_weights_for_every_micro_batch(tmp_path: Path) -> None:
    trainer = counted(tmp_path, sam_variant="random", rho=0.3, max_steps=2, gradient_accumulation_steps=3)
    assert [which for _, which, _, _ in trainer.passes] == ["ascent"] * 6
    first, second = trainer.seen[:3], trainer.seen[3:]
    assert all(torch.equal(first[0], w) for w in first)
    assert all(torch.equal(second[0], w) for w in second)
    assert not torch.equal(first[0], second[0])


# ----------------------------------------------------------------------------------------------------------------------
# The examples
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fraction", "accumulation", "sizes"),
    [
        (0.5, 1, [2]),
        (0.25, 1, [1]),
        (0.3, 1, [2]),
        (0.5, 4, [4, 4]),
        (0.25, 4, [4]),
        (0.1, 4, [2]),
        (0.6, 4, [4] * 3),
    ],
)
def test_the_ascent_sees_a_part_and_every_example_counts_once(
    fraction: float, accumulation: int, sizes: list[int], tmp_path: Path
) -> None:
    trainer = counted(
        tmp_path, rho=0.05, ascent_fraction=fraction, gradient_accumulation_steps=accumulation, max_steps=1
    )
    assert [size for _, which, size, _ in trainer.passes if which == "ascent"] == sizes
    assert [size for _, which, size, _ in trainer.passes if which == "descent"] == [4] * accumulation
    assert sum(size for _, _, size, counts in trainer.passes if counts) == 4 * accumulation


def gradient(model: nn.Module, batches: list[dict[str, Tensor]]) -> tuple[float, list[Tensor]]:
    """Mean loss per label over all batches, and its gradient: what the Trainer's normalisation amounts to."""
    model.zero_grad()
    count = sum(int((b["labels"][..., 1:] != -100).sum()) for b in batches)
    total = sum(model(**b, num_items_in_batch=count).loss for b in batches)
    total.backward()
    return total.item(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(("fraction", "rows"), [(0.5, [1, 3]), (1.0, [0, 1, 2, 3])])
def test_a_part_of_a_batch_gives_the_direction_and_the_loss_of_that_part(
    fraction: float, rows: list[int], tmp_path: Path
) -> None:
    """With ragged labels, one step of SGD against the formula."""
    sam = SAMConfig(rho=0.3, ascent_fraction=fraction)
    trainer = trainer_for("llama", tmp_path, sam=sam, prepare=without_dropout, **ONE_STEP)
    model = trainer.model
    model.double()
    batch = next(iter(trainer.get_train_dataloader()))

    def share(labels: torch.Tensor) -> float:
        """Return what the Trainer makes of a mean; below 1 where it counts the first label too, as up to 5.5.4."""
        return ((labels[:, 1:] != -100).sum() / trainer._get_num_items_in_batch([{"labels": labels}], "cpu")).item()

    torch.manual_seed(trainer.args.seed)
    start = [p.detach().clone() for p in model.parameters()]
    loss, g = gradient(model, [{k: v[rows] for k, v in batch.items()}])
    length = torch.sqrt(sum(x.square().sum() for x in g))
    with torch.no_grad():
        for p, x in zip(model.parameters(), g, strict=True):
            p.add_(x, alpha=0.3 / length.item())
    _, h = gradient(model, [dict(batch)])
    expected = [w - 0.1 * share(batch["labels"]) * x for w, x in zip(start, h, strict=True)]
    with torch.no_grad():
        for p, w in zip(model.parameters(), start, strict=True):
            p.copy_(w)
    trainer.train()
    for found, wanted in zip(model.parameters(), expected, strict=True):
        assert (found - wanted).abs().max() <= RELATIVE[torch.float32]
    assert training_logs(trainer)[0]["loss"] == pytest.approx(share(batch["labels"][rows]) * loss, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["batch", "micro_batch"])
def test_the_loss_of_a_part_is_in_the_units_of_the_whole(scope: str, tmp_path: Path) -> None:
    """Every example the same: then the part's loss is the whole's, and so is its gradient."""
    alike = lambda data: [data[0]] * 8  # noqa: E731
    settings = {"gradient_accumulation_steps": 2, "wrap_data": alike, "max_steps": 2, "prepare": without_dropout}
    runs = []
    for fraction in (1.0, 0.5, 0.125):
        sam = SAMConfig(rho=0.3, ascent_fraction=fraction, sam_scope=scope)
        trainer = trainer_for("llama", tmp_path, sam=sam, **settings, **SGD)
        trainer.train()
        runs.append((weights(trainer), training_logs(trainer)))
    for found, logs in runs[1:]:
        assert (found - runs[0][0]).abs().max() <= RELATIVE[torch.float32]
        for mine, whole in zip(logs, runs[0][1], strict=True):
            for key in ("loss", "sam/epsilon_norm"):
                assert mine[key] == pytest.approx(whole[key], rel=1e-3, abs=1e-6), key


def test_a_fraction_that_saves_nothing_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="hf_sam"):
        counted(tmp_path, rho=0.05, ascent_fraction=0.25, per_device_train_batch_size=1, max_steps=3)
    told = [r.getMessage() for r in caplog.records if "saves nothing" in r.getMessage()]
    assert len(told) == 1
    assert "`ascent_fraction=0.25`" in told[0]


# ----------------------------------------------------------------------------------------------------------------------
# The parameters
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("settings", [{}, {"ascent_fraction": 0.5}, {"sam_scope": "micro_batch"}], ids=str)
def test_only_the_chosen_parameters_are_differentiated_and_move(settings: dict[str, Any], tmp_path: Path) -> None:
    graded: list[set[str]] = []

    class Looking(Counting):
        def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            graded.append({name for name, p in model.named_parameters() if p.requires_grad})
            return super().compute_loss(model, *args, **kwargs)

    sam = SAMConfig(rho=0.3, sam_parameters="last:1", sam_check_repeatable="off", **settings)
    trainer = trainer_for("bert", tmp_path, sam=sam, classes=(SAMTrainer, Looking), max_steps=1)
    every = {name for name, _ in trainer.model.named_parameters()}
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    chosen = {name for name in every if ".layer.1." in name or "pooler" in name or "classifier" in name}
    assert graded == [chosen, every, every], "once with all, to see whether the loss is the same without"
    assert all(p.requires_grad for p in trainer.model.parameters())
    climbed = trainer.seen[-1]
    sizes = [p.numel() for p in start.values()]
    moved = {
        name
        for name, w in zip(start, climbed.split(sizes), strict=True)
        if not torch.equal(w, start[name].double().flatten())
    }
    assert moved <= chosen
    assert len(moved) > 10


def test_a_bad_choice_is_refused_when_the_trainer_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sam_parameters"):
        trainer_for("bert", tmp_path, sam=SAMConfig(sam_parameters="last:7"))
    with pytest.raises(ValueError, match="sam_parameters"):
        trainer_for("bert", tmp_path, sam=SAMConfig(sam_parameters="nowhere"))
    with pytest.raises(ValueError, match="LoRA"):
        trainer_for("bert", tmp_path, sam=SAMConfig(sam_variant="nbar"))


# ----------------------------------------------------------------------------------------------------------------------
# Settings that change, controllers
# ----------------------------------------------------------------------------------------------------------------------
class Changing(TrainerCallback):
    def __init__(self, **later: Any) -> None:
        self.later = later

    def on_step_begin(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            for name, value in self.later.items():
                setattr(args, name, value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("later", "expected"),
    [
        ({"rho": 0.2}, [0.1, 0.1, 0.2, 0.2]),
        ({"sam_every": 3}, [0.1, 0.1, 0.0, 0.1]),
        ({"sam_variant": "asam"}, [0.1, 0.1, 0.1, 0.1]),
    ],
    ids=str,
)
def test_a_callback_may_change_the_settings(later: dict[str, Any], expected: list[Any], tmp_path: Path) -> None:
    def trained(callbacks: list[Any]) -> Any:
        extra = {"callbacks": callbacks}
        trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.1), trainer_kwargs=extra, max_steps=4)
        trainer.train()
        return trainer

    trainer = trained([Changing(**later)])
    assert [log["sam/rho"] for log in training_logs(trainer)] == expected
    assert not torch.equal(weights(trainer), weights(trained([])))


@pytest.mark.slow
def test_target_ascent_moves_the_radius_towards_its_target(tmp_path: Path) -> None:
    schedule = {"target": 0.02, "smoothing": 0.0, "max_change": 0.3}
    sam = SAMConfig(rho=0.01, rho_schedule="target_ascent", rho_schedule_kwargs={**schedule, "rho_max": 5.0})
    settings = {"learning_rate": 1e-5, "max_steps": 30, "prepare": without_dropout, "per_device_train_batch_size": 26}
    trainer = trainer_for("bert", tmp_path, sam=sam, **settings)
    trainer.train()
    shares = [log["sam/sharpness"] / log["loss"] for log in training_logs(trainer)]
    assert shares[0] < 0.01
    assert all(share == pytest.approx(0.02, rel=0.02) for share in shares[-5:])


def asked_always(length: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rho="auto" ask for the same at every step, from the first."""
    monkeypatch.setattr(Auto, "at", lambda self, context: torch.tensor(length))
    monkeypatch.setattr(Auto, "_length", lambda self: torch.tensor(length))


@pytest.mark.parametrize("direction", ["momentum", "random"])
def test_auto_is_in_sizes_of_the_weights_without_a_gradient(
    direction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """||T v|| / ||v|| is between the least and the largest |w| + 0.01 of the weights that move."""
    asked_always(0.5, monkeypatch)
    chosen = "query.weight|key.weight"
    sam = SAMConfig(sam_variant=direction, rho="auto", sam_parameters=chosen, sam_start=0.0)
    trainer = trainer_for("bert", tmp_path, sam=sam, max_steps=4, learning_rate=1e-4, prepare=without_dropout)
    trainer.train()
    sizes = [p.detach().abs() for name, p in trainer.model.named_parameters() if re.search(chosen, name)]
    typical = torch.cat([size.flatten() for size in sizes]).square().mean().sqrt().item()
    radii = [log["sam/rho"] for log in training_logs(trainer) if log["sam/perturbed"]]
    assert len(radii) >= 3
    assert all(0.25 * typical < rho < 1.5 * (typical + 0.01) for rho in radii)


def test_auto_acts_in_a_short_run_once_the_loss_falls(tmp_path: Path) -> None:
    """And is the plain Trainer, bit for bit and at its cost, where the loss does not fall."""
    settings = {"max_steps": 18, "prepare": without_dropout, "per_device_train_batch_size": 26}
    for rate, falls in ((1e-2, True), (1e-7, False)):
        found = trainer_for("bert", tmp_path, sam=SAMConfig(rho="auto"), learning_rate=rate, **settings)
        found.train()
        perturbed = [log["sam/perturbed"] for log in training_logs(found)]
        assert perturbed[: 18 // 3] == [0.0] * 6, "these give the loss that the others are compared with"
        rhos = [log["sam/rho"] for log in training_logs(found)]
        assert (max(rhos) > 0) == falls
        plain = trainer_for("bert", tmp_path, sam=None, learning_rate=rate, **settings)
        plain.train()
        assert torch.equal(weights(found), weights(plain)) != falls


class Stream(IterableDataset[Any]):
    def __init__(self, data: Any) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return iter(self.data)


def test_auto_is_plain_training_on_a_stream_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of data of unknown length nothing is seen twice, as far as can be known."""
    settings = {"max_steps": 15, "learning_rate": 1e-2, "per_device_train_batch_size": 26}
    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho="auto"), prepare=without_dropout, **settings)
    trainer.train_dataset = Stream(list(trainer.train_dataset) * 20)
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        trainer.train()
    assert max(log["sam/rho"] for log in training_logs(trainer)) == 0
    assert "No step of this run perturbed the weights" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["batch", "micro_batch"])
def test_auto_has_the_same_rise_for_sam_and_asam(scope: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """rho ||g|| of the one is rho ||T g|| of the other, to first order."""
    asked_always(1e-4, monkeypatch)
    rises = []
    for direction in ("sam", "asam"):
        sam = SAMConfig(sam_variant=direction, rho="auto", sam_scope=scope)
        settings = {"max_steps": 3, "prepare": without_dropout, "learning_rate": 1e-5}
        settings |= {"per_device_train_batch_size": 13, "gradient_accumulation_steps": 2}
        trainer = trainer_for("bert", tmp_path, sam=sam, **settings)
        trainer.train()
        rises.append([log["sam/sharpness"] for log in training_logs(trainer)])
    assert min(rises[0]) > 0
    assert rises[0] == pytest.approx(rises[1], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("scope", "accumulation"), [("batch", 1), ("batch", 2), ("micro_batch", 2)])
def test_loss_budget_has_the_first_order_rise_that_was_asked_for(scope: str, accumulation: int, tmp_path: Path) -> None:
    schedule = {"rho_schedule": "loss_budget", "rho_schedule_kwargs": {"sigma": 1e-3}}
    sam = SAMConfig(rho=10.0, sam_scope=scope, **schedule)
    settings = {"max_steps": 3, "prepare": without_dropout, "learning_rate": 1e-5}
    settings |= {"per_device_train_batch_size": 26 // accumulation, "gradient_accumulation_steps": accumulation}
    trainer = trainer_for("bert", tmp_path, sam=sam, **settings)
    trainer.train()
    for log in training_logs(trainer):
        assert log["sam/sharpness"] == pytest.approx(1e-3, rel=0.05)
        assert log["sam/rho"] == pytest.approx(log["sam/epsilon_norm"], rel=1e-4)


@pytest.mark.parametrize("optim", ["adafactor", "sgd", "rmsprop"])
def test_an_optimizer_without_momentum_is_refused_before_warm_up_is_over(optim: str, tmp_path: Path) -> None:
    sam = SAMConfig(sam_variant="momentum")
    trainer = trainer_for("bert", tmp_path, sam=sam, optim=optim, warmup_steps=4, max_steps=6)
    with pytest.raises(ValueError, match="needs an optimizer that keeps one"):
        trainer.train()
    assert trainer.state.global_step <= 1
