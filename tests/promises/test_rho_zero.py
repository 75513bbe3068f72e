# SPDX-License-Identifier: Apache-2.0
"""Promise 1: with rho = 0 the run is the plain Trainer's, bit for bit, although both passes really run."""

from __future__ import annotations

import shutil
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer

from hf_sam import SAMConfig, SAMTrainer
from tests.covering import covering
from tests.floor import compiles_models
from tests.models import FAMILIES
from tests.promises.runs import PlainScaled, SAMScaled, differences, fingerprint, moved, trainer_for

SCOPES = ("batch", "micro_batch")
both_scopes = pytest.mark.parametrize("scope", ["batch", pytest.param("micro_batch", marks=pytest.mark.slow)])
# Every family in the scope batch, over a window that divides no epoch; one family over every scope and window.
RUNS = covering(
    product(FAMILIES, SCOPES, (1, 3, 4)),
    fast=[*((family, "batch", 3) for family in ("lora", "llama", "mixtral", "resnet")), ("bert", "micro_batch", 3)],
    slow=[
        *((family, "batch", 3) for family in ("bert", "t5", "vit")),
        *product(["bert"], SCOPES, (1, 4)),
        ("llama", "micro_batch", 4),
        ("resnet", "micro_batch", 3),
    ],
)


def assert_same_run(family: str, tmp_path: Any, scope: str = "batch", variant: str = "sam", **settings: Any) -> None:
    plain = trainer_for(family, tmp_path, sam=None, **settings)
    plain.train()
    expected = fingerprint(plain)
    sharp = trainer_for(family, tmp_path, sam=SAMConfig(rho=0.0, sam_scope=scope, sam_variant=variant), **settings)
    sharp.train()
    assert differences(expected, fingerprint(sharp)) == []
    assert moved(plain, family) > 1e-3
    passes = [entry for entry in sharp.state.log_history if entry.get("sam/perturbed")]
    assert len(passes) == sharp.state.global_step  # the perturb-and-restore path ran at every step


@pytest.mark.parametrize(("family", "scope", "accumulation"), RUNS)
def test_every_family_trains_as_the_plain_trainer(family: str, scope: str, accumulation: int, tmp_path: Any) -> None:
    assert_same_run(family, tmp_path, scope, gradient_accumulation_steps=accumulation)


@pytest.mark.slow
@pytest.mark.parametrize("scope", SCOPES)
def test_asam_trains_as_the_plain_trainer(scope: str, tmp_path: Any) -> None:
    assert_same_run("bert", tmp_path, scope, variant="asam", gradient_accumulation_steps=3)


@pytest.mark.parametrize("family", ["llama", pytest.param("bert", marks=pytest.mark.slow)])
def test_label_smoothing(family: str, tmp_path: Any) -> None:
    assert_same_run(family, tmp_path, label_smoothing_factor=0.1, gradient_accumulation_steps=3)


def summed_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
    logits = outputs["logits"]
    return nn.functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


@pytest.mark.slow
def test_a_loss_function_of_the_users(tmp_path: Any) -> None:
    assert_same_run("bert", tmp_path, gradient_accumulation_steps=3, trainer_kwargs={"compute_loss_func": summed_loss})


class PoppingLoss:
    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs  # the Trainer's own would make a new dict

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        labels = inputs.pop("labels")
        return nn.functional.cross_entropy(model(**inputs).logits, labels)


class PlainPopping(PoppingLoss, Trainer):
    pass


class SAMPopping(PoppingLoss, SAMTrainer):
    pass


def test_a_compute_loss_that_pops_its_labels(tmp_path: Any) -> None:
    assert_same_run("bert", tmp_path, gradient_accumulation_steps=3, classes=(PlainPopping, SAMPopping))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_neftune_noise(family: str, tmp_path: Any) -> None:
    assert_same_run(family, tmp_path, neftune_noise_alpha=5.0, gradient_accumulation_steps=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reentrant", "scope"),
    covering(product([True, False], SCOPES), fast=[(False, "batch")], slow=[(True, "micro_batch")]),
)
def test_gradient_checkpointing(reentrant: bool, scope: str, tmp_path: Any) -> None:
    assert_same_run(
        "bert",
        tmp_path,
        scope,
        gradient_accumulation_steps=3,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )


@pytest.mark.slow
@both_scopes
def test_bf16_autocast(scope: str, tmp_path: Any) -> None:
    assert_same_run("bert", tmp_path, scope, gradient_accumulation_steps=3, bf16=True)


@pytest.mark.parametrize(
    ("scope", "scale"),
    covering(
        product(SCOPES, [2.0**10, 2.0**30]),
        fast=[("batch", 2.0**30)],
        slow=[("batch", 2.0**10), ("micro_batch", 2.0**30)],
    ),
)
def test_a_gradient_scaler_also_while_it_backs_off(scope: str, scale: float, tmp_path: Any) -> None:
    plain, sharp = (type(c.__name__, (c,), {"initial_scale": scale}) for c in (PlainScaled, SAMScaled))
    plain_run = trainer_for("bert", tmp_path, sam=None, classes=(plain, sharp), num_train_epochs=4)
    plain_run.train()
    expected = fingerprint(plain_run)
    sharp_run = trainer_for(
        "bert", tmp_path, sam=SAMConfig(rho=0.0, sam_scope=scope), classes=(plain, sharp), num_train_epochs=4
    )
    sharp_run.train()
    assert differences(expected, fingerprint(sharp_run)) == []
    assert (expected["scaler"]["scale"] < scale) == (scale > 2.0**20)  # it did back off where it had to


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


def whole_batches(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the short one, for which everything would be compiled again."""
    return data[:16]


@pytest.mark.slow
@compiles_models
@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=[needs_compiler, pytest.mark.everything])]
)
@pytest.mark.parametrize("scope", SCOPES)
def test_torch_compile(scope: str, backend: str, tmp_path: Any) -> None:
    assert_same_run(
        "bert",
        tmp_path,
        scope,
        gradient_accumulation_steps=2,
        torch_compile=True,
        torch_compile_backend=backend,
        wrap_data=whole_batches,
        max_steps=4,
    )


class Stream(IterableDataset):
    """A dataset without a length."""

    def __init__(self, data: list[dict[str, Any]]) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return iter(self.data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "scope"),
    covering(product(["llama", "resnet"], SCOPES), fast=[("llama", "batch")], slow=[("resnet", "micro_batch")]),
)
def test_a_dataset_without_length_whose_gradients_spill_into_the_next_epoch(
    family: str, scope: str, tmp_path: Any
) -> None:
    assert_same_run(family, tmp_path, scope, gradient_accumulation_steps=4, max_steps=7, wrap_data=Stream)


class Divided:
    """Divides each loss by the number of micro-batches, as for models that ignore `num_items_in_batch`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


class PlainDivided(Divided, Trainer):
    pass


class SAMDivided(Divided, SAMTrainer):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("scope", SCOPES)
def test_spilled_micro_batches_keep_the_divisor_of_their_own_group(scope: str, tmp_path: Any) -> None:
    settings = {"classes": (PlainDivided, SAMDivided), "wrap_data": Stream}
    assert_same_run("resnet", tmp_path, scope, gradient_accumulation_steps=4, max_steps=7, **settings)


class CountingBuffer(nn.Module):
    """A layer whose output depends on how often it ran: a pass that started elsewhere would be another function."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1.0  # binds a new tensor, as some models do
        return x * (1 + 0.1 * self.calls)


def add_counter(model: nn.Module) -> None:
    model.classifier = nn.Sequential(CountingBuffer(), model.classifier)


@both_scopes
def test_a_buffer_that_the_forward_pass_reads_and_writes(scope: str, tmp_path: Any) -> None:
    assert_same_run("bert", tmp_path, scope, gradient_accumulation_steps=3, prepare=add_counter)


@pytest.mark.parametrize(
    "optim", [pytest.param(n, marks=pytest.mark.slow) for n in ("sgd", "adamw_torch", "adafactor")]
)
def test_every_optimizer_stays_the_users(optim: str, tmp_path: Any) -> None:
    assert_same_run("bert", tmp_path, optim=optim, gradient_accumulation_steps=2, learning_rate=0.05)


@pytest.mark.slow
def test_no_clipping(tmp_path: Any) -> None:
    assert_same_run("bert", tmp_path, max_grad_norm=0.0)
