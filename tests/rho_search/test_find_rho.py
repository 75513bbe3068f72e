# SPDX-License-Identifier: Apache-2.0
"""Hold the range test of the radius to its formulas. Does it recommend what follows from the measurement?"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, set_seed

from hf_sam import VARIANTS, RangeTest, SAMConfig, SAMTrainer
from hf_sam.rho_search.find_rho import find_rho
from hf_sam.rho_search.recommendation import recommend
from tests.promises.runs import SAMScaled, trainer_for
from tests.reference.sam_numpy import SGD, Arrays, asam_paper, loss_and_gradient, new_weights, norm, sam
from tests.small_models import Classifier
from tests.tolerances import RELATIVE

CLIP, RATE, STEPS, EXAMPLES, BATCH = 0.5, 0.3, 5, 40, 6
RHOS = (0.01, 0.1, 1.0)


# ----------------------------------------------------------------------------------------------------------------------
# Against the formulas in NumPy: plain steps, then L(w + epsilon) - L(w)
# ----------------------------------------------------------------------------------------------------------------------
class Net(Classifier):
    """As a Trainer wants it."""

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"loss": nn.functional.cross_entropy(super().forward(x), labels)}


def net_and_data() -> tuple[Net, list[dict[str, Any]], Arrays]:
    rng = np.random.default_rng(3)
    weights = new_weights(rng)
    labels = rng.integers(0, 3, EXAMPLES)
    data = [{"x": torch.tensor(rng.normal(size=5)), "labels": torch.tensor(label)} for label in labels]
    model = Net().double()
    model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    return model, data, weights


def net_trainer(tmp_path: Any, seen: list[Any] | None = None, **sam_fields: Any) -> SAMTrainer:
    """Return a trainer with plain SGD; `seen` takes every batch that is loaded."""
    model, data, _ = net_and_data()

    def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = {name: torch.stack([e[name] for e in examples]) for name in ("x", "labels")}
        if seen is not None:
            seen.append((batch["x"].numpy(), batch["labels"].numpy()))
        return batch

    args = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        optim="sgd",
        learning_rate=RATE,
        max_grad_norm=CLIP,
        lr_scheduler_type="linear",
        per_device_train_batch_size=BATCH,
        num_train_epochs=5,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    set_seed(1)
    config = SAMConfig(**sam_fields)
    return SAMTrainer(model, args, train_dataset=data, data_collator=collate, sam_config=config)


def reference(
    batches: list[Any], steps: int, epsilon: Callable[[Arrays, Arrays, float], Arrays]
) -> tuple[list[float], list[list[float]]]:
    """Take plain clipped SGD steps on the first batches; return L(w) and L(w + epsilon) - L(w) on the others."""
    w = net_and_data()[2]
    total = 5 * math.ceil(EXAMPLES / BATCH)
    for step, (x, y) in enumerate(batches[:steps]):
        g = loss_and_gradient(w, x, y)[1]
        factor = min(1.0, CLIP / (norm(g) + 1e-6))
        SGD(RATE * (1 - step / total), 0.0, 0.0).step(w, {k: factor * g[k] for k in g})
    losses, rises = [], []
    for x, y in batches[steps:]:
        loss, g = loss_and_gradient(w, x, y)
        losses.append(loss)
        perturbed = [{k: w[k] + e[k] for k in w} for e in (epsilon(w, g, rho) for rho in RHOS)]
        rises.append([loss_and_gradient(w_, x, y)[0] - loss for w_ in perturbed])
    return losses, rises


@pytest.mark.parametrize(
    ("variant", "options", "epsilon"),
    [("sam", None, sam), ("asam", None, asam_paper), ("asam", {"eta": 0.5}, functools.partial(asam_paper, eta=0.5))],
)
def test_losses_and_rises_are_those_of_the_formulas(variant: str, options: Any, epsilon: Any, tmp_path: Any) -> None:
    seen: list[Any] = []
    trainer = net_trainer(tmp_path, seen, sam_variant=variant, sam_variant_kwargs=options)
    result = find_rho(trainer, steps=STEPS, batches=4, rhos=RHOS)
    losses, rises = reference(seen[: STEPS + 4], STEPS, epsilon)  # 7 batches an epoch: the last two are of the next one
    assert result.losses == pytest.approx(losses, rel=RELATIVE[torch.float64])
    for found, row, loss in zip(result.rises, rises, losses, strict=True):
        assert found == pytest.approx(row, abs=RELATIVE[torch.float64] * loss)
    assert (result.steps, result.rhos, result.variant) == (STEPS, RHOS, variant)


def test_only_the_chosen_parameters_are_perturbed(tmp_path: Any) -> None:
    def first_layer(w: Arrays, g: Arrays, rho: float) -> Arrays:
        part = {k: g[k] if k.startswith("first") else 0 * g[k] for k in g}
        return sam(w, part, rho)

    seen: list[Any] = []
    result = find_rho(net_trainer(tmp_path, seen, sam_parameters="^first"), steps=1, batches=1, rhos=RHOS)
    losses, rises = reference(seen[:2], 1, first_layer)
    assert result.rises[0] == pytest.approx(rises[0], abs=RELATIVE[torch.float64] * losses[0])


def test_no_plain_steps_measures_the_model_as_it_is(tmp_path: Any) -> None:
    seen: list[Any] = []
    result = find_rho(net_trainer(tmp_path, seen), steps=0, batches=1, rhos=RHOS)
    assert result.losses == pytest.approx(reference(seen[:1], 0, sam)[0], rel=RELATIVE[torch.float64])


def test_a_short_run_leaves_room_for_the_measurement(tmp_path: Any) -> None:
    trainer = net_trainer(tmp_path)
    trainer.args.max_steps = 3
    assert find_rho(trainer, steps=30, batches=1, rhos=RHOS).steps == 2


def test_few_data_give_fewer_batches(tmp_path: Any) -> None:
    trainer = net_trainer(tmp_path)
    trainer.train_dataset = trainer.train_dataset[: 2 * BATCH]
    assert len(find_rho(trainer, steps=1, batches=10, rhos=RHOS).losses) == 3  # the epoch's second, and one epoch more


# ----------------------------------------------------------------------------------------------------------------------
# Real models: dropout, windows of several micro-batches, a gradient scaler, counters, every variant
# ----------------------------------------------------------------------------------------------------------------------
def test_perturbed_losses_see_the_dropout_masks_of_the_clean_pass(tmp_path: Any) -> None:
    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(), prepare=lambda model: model.double())
    result = find_rho(trainer, steps=2, batches=2, rhos=[1e-9, 1e-7])
    for loss, (_, rise) in zip(result.losses, result.rises, strict=True):
        assert 0 < rise < 1e-6 * loss  # other masks change the loss by some percent


def recording(base: type[Trainer], step: int) -> tuple[type, list[list[Tensor]], list[tuple[bool, int]]]:
    """Return a trainer, the weights at each call of its `compute_loss` in a step, and what these calls were."""
    weights: list[list[Tensor]] = []
    calls: list[tuple[bool, int]] = []

    class Recorder(base):  # type: ignore[misc, valid-type]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == step:
                weights.append([p.detach().clone() for p in model.parameters()])
                calls.append((torch.is_grad_enabled(), len(inputs["labels"])))
            return super().compute_loss(model, inputs, *args, **kwargs)

    return Recorder, weights, calls


def test_the_plain_steps_are_those_of_the_trainer(tmp_path: Any) -> None:
    options = {"gradient_accumulation_steps": 2, "weight_decay": 0.1, "warmup_steps": 2, "max_grad_norm": 0.3}
    plain, plain_weights, _ = recording(Trainer, 3)
    ours, our_weights, _ = recording(SAMTrainer, 3)
    trainer_for("llama", tmp_path, sam=None, classes=(plain, ours), **options).train()
    trainer = trainer_for("llama", tmp_path, sam=SAMConfig(rho=0.5), classes=(plain, ours), **options)
    find_rho(trainer, steps=3, batches=1, rhos=RHOS)
    assert all(torch.equal(a, b) for a, b in zip(plain_weights[0], our_weights[0], strict=True))


@pytest.mark.parametrize(("scope", "window"), [("batch", 2), ("micro_batch", 1)])
def test_a_batch_is_what_shares_a_perturbation_and_only_its_clean_pass_has_a_gradient(
    scope: str, window: int, tmp_path: Any
) -> None:
    ours, weights, calls = recording(SAMTrainer, 1)
    config = SAMConfig(sam_scope=scope)
    trainer = trainer_for("bert", tmp_path, sam=config, classes=(Trainer, ours), gradient_accumulation_steps=2)
    result = find_rho(trainer, steps=1, batches=2, rhos=RHOS)
    assert calls == 2 * (window * [(True, 4)] + len(RHOS) * window * [(False, 4)])
    at = [0, window, window * (1 + len(RHOS))]  # the first clean pass, the first perturbed one, the second clean one
    assert not all(torch.equal(a, b) for a, b in zip(weights[at[0]], weights[at[1]], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights[at[0]], weights[at[2]], strict=True))
    assert all(0.3 < loss < 1.5 for loss in result.losses)  # a mean over the window, not a sum


def test_with_a_gradient_scaler_the_losses_are_unscaled(tmp_path: Any) -> None:
    found = [
        find_rho(
            trainer_for("llama", tmp_path, sam=SAMConfig(), classes=(Trainer, cls), lr_scheduler_type="constant"),
            steps=2,
            batches=2,
            rhos=RHOS,
        )
        for cls in (SAMTrainer, SAMScaled)
    ]
    assert found[1].losses == pytest.approx(found[0].losses, rel=0.05)
    assert found[1].relative_rises == pytest.approx(found[0].relative_rises, rel=0.2)


def test_a_loss_that_counts_examples_counts_none(tmp_path: Any) -> None:
    counted: list[str] = []

    class Counting(SAMTrainer):
        counters = ("_counts",)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self._counts["train"].append(1)
            if self.counts_examples or not self.in_descent_pass:
                counted.append("an example")
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(), classes=(Trainer, Counting))
    trainer._counts = {"train": [1]}
    find_rho(trainer, steps=1, batches=1, rhos=RHOS)
    assert trainer._counts == {"train": [1]}
    assert not counted
    assert (trainer.in_descent_pass, trainer.counts_examples) == (False, True)


TWO_PASS = [name for name, cls in VARIANTS.items() if cls.passes == "two" and cls.__module__.startswith("hf_sam.")]
OTHERS = [name for name, cls in VARIANTS.items() if cls.passes != "two" and cls.__module__.startswith("hf_sam.")]


@pytest.mark.slow
@pytest.mark.parametrize("variant", TWO_PASS)
def test_every_variant_of_two_passes_is_measured_around_its_default(variant: str, tmp_path: Any) -> None:
    result = find_rho(net_trainer(tmp_path, sam_variant=variant, rho="auto"), steps=2, batches=2)
    default = VARIANTS[variant].default_rho
    assert len(result.rhos) == 16
    assert (result.rhos[0], result.rhos[-1]) == pytest.approx((default / 25, default * 25), rel=1e-3)
    assert result.rhos[0] < result.rho < result.rhos[-1]
    assert list(result.relative_rises) == sorted(result.relative_rises)


# ----------------------------------------------------------------------------------------------------------------------
# What follows from the measurement
# ----------------------------------------------------------------------------------------------------------------------
GRID = (0.1, 0.2, 0.4, 0.8)


@pytest.mark.parametrize(
    ("relative", "expected", "words"),
    [
        ((0.01, 0.04, 0.16, 0.64), 0.22, ["0.22", "5 %", "4 % at 0.2", "16 % at 0.4"]),  # 0.2236 = 0.2 * sqrt(5 / 4)
        ((0.01, 0.05, 0.16, 0.64), 0.2, ["5 % at 0.2"]),
        ((0.01, 0.04, 0.01, 0.64), 0.52, ["1 % at 0.4"]),
        ((0.01, 0.06, 0.04, 0.03), 0.18, ["1 % at 0.1", "6 % at 0.2"]),  # the first crossing
        ((0.01, 0.04, math.inf, math.inf), 0.2, ["0.2 is the largest", "inf % at 0.4"]),
        ((0.01, 0.04, math.nan, 0.01), 0.2, ["0.2 is the largest", "nan % at 0.4"]),
        ((-0.01, 0.0, 0.3, 0.5), 0.2, ["0.2 is the largest", "0 %", "30 % at 0.4"]),
        ((0.001, 0.002, 0.003, 0.004), 0.8, ["Up to rho 0.8", "0.4 %", "5 %", "larger `rhos`"]),
        ((0.1, 0.2, 0.3, 0.4), 0.1, ["rho 0.1, the smallest", "10 %", "5 %", "smaller `rhos`"]),
        ((math.nan, 0.2, 0.3, 0.4), 0.1, ["rho 0.1, the smallest", "nan %"]),
    ],
)
def test_recommends_the_largest_radius_with_a_small_rise_and_says_why(
    relative: tuple[float, ...], expected: float, words: list[str]
) -> None:
    rho, reason = recommend(GRID, relative, 0.05, loss=1.23)
    assert rho == pytest.approx(expected)
    assert not [word for word in [*words, "1.23"] if word not in reason], reason


def test_a_radius_between_two_that_were_tried_is_not_rounded_below_the_lower_one() -> None:
    assert recommend([0.117, 0.2], [0.0499, 0.2], 0.05, loss=1.0)[0] == 0.117


def test_the_result_says_where_it_comes_from_and_is_json(tmp_path: Any) -> None:
    result = find_rho(net_trainer(tmp_path), steps=3, batches=2, rhos=[0.4, 0.1, 1e200, 0.1])
    assert result.rhos == (0.1, 0.4, 1e200)
    assert result.reason.endswith("(batches: 2, plain steps before them: 3).")
    assert result.seconds > 0
    stored = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert stored["rho"] == result.rho
    assert stored["relative_rises"][:2] == list(result.relative_rises[:2])
    broken = RangeTest(**{**vars(result), "rises": ((0.1, math.inf, math.nan),), "losses": (1.0,)})
    assert broken.to_dict()["rises"] == [[0.1, None, None]]
    assert broken.to_dict()["relative_rises"] == [0.1, None, None]


def test_tells_its_progress(tmp_path: Any) -> None:
    told: list[float] = []
    find_rho(net_trainer(tmp_path), steps=3, batches=2, rhos=RHOS, progress=told.append)
    assert told == sorted(told)
    assert (told[0], told[-1], len(told)) == (0.0, 1.0, 3 + 2 * len(RHOS))


# ----------------------------------------------------------------------------------------------------------------------
# What it refuses
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steps": -1}, ValueError, "find_rho(steps=...)` must be a whole number >= 0, got -1"),
        ({"steps": 2.0}, TypeError, "find_rho(steps=...)` must be a whole number >= 0, got 2.0"),
        ({"batches": 0}, ValueError, "find_rho(batches=...)` must be a whole number >= 1, got 0"),
        ({"batches": True}, TypeError, "find_rho(batches=...)`"),
        ({"share": 0.0}, ValueError, "find_rho(share=...)` must be a finite number > 0, got 0.0"),
        ({"share": "5 %"}, TypeError, "find_rho(share=...)`"),
        ({"rhos": []}, ValueError, "find_rho(rhos=...)` must hold at least one radius > 0"),
        ({"rhos": [0.1, -0.1]}, ValueError, "find_rho(rhos=...)` must be a finite number > 0, got -0.1"),
    ],
)
def test_a_bad_argument_is_named(options: Any, error: type[Exception], words: str, tmp_path: Any) -> None:
    with pytest.raises(error, match=re.escape(words)):
        find_rho(net_trainer(tmp_path), **options)


@pytest.mark.parametrize("variant", OTHERS)
def test_variants_without_a_clean_gradient_are_refused_with_the_way_out(variant: str, tmp_path: Any) -> None:
    family = "bert" if variant in ("momentum", "random") else "lora"
    trainer = trainer_for(family, tmp_path, sam=SAMConfig(sam_variant=variant))
    default = f"Its default is rho={VARIANTS[variant].default_rho:g}"
    way_out = 'Use rho="auto"' if VARIANTS[variant].adapts_radius else default
    with pytest.raises(NotImplementedError, match=re.escape(f"sam_variant='{variant}' does not compute. {way_out}.")):
        find_rho(trainer)


def test_a_trainer_without_a_variant_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="sam_variant='none' has none"):
        find_rho(net_trainer(tmp_path, sam_variant="none"))
    with pytest.raises(TypeError, match=r"must be a SAMTrainer.* got Trainer"):
        find_rho(trainer_for("bert", tmp_path, sam=None))


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        ("hf_sam.trainer.trainer.SAMTrainer.is_fsdp_enabled", True, "this trainer has sharded weights"),
        ("transformers.TrainingArguments.world_size", 2, "this trainer has 2 processes"),
        ("accelerate.Accelerator.distributed_type", "DEEPSPEED", "this trainer has DeepSpeed"),
    ],
)
def test_several_processes_are_refused(
    where: str, value: Any, words: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = net_trainer(tmp_path)
    vars(trainer).pop("is_fsdp_enabled")
    monkeypatch.setattr(SAMTrainer, "is_fsdp_enabled", False, raising=False)
    monkeypatch.setattr(where, value)
    with pytest.raises(NotImplementedError, match=f"{words}.*gradient_accumulation_steps"):
        find_rho(trainer)


def test_a_loss_that_says_nothing_is_an_error_that_says_so(tmp_path: Any) -> None:
    diverging = net_trainer(tmp_path)
    diverging.args.learning_rate, diverging.args.max_grad_norm = 1e300, 0.0
    with pytest.raises(ValueError, match="finite and not zero after 3 plain steps"):
        find_rho(diverging, steps=3, batches=1, rhos=RHOS)

    class Negative(SAMTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs) - 10

    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(), classes=(Trainer, Negative))
    with pytest.raises(ValueError, match="must be a finite number > 0 after 1 plain steps, got -9"):
        find_rho(trainer, steps=1, batches=1, rhos=RHOS)
