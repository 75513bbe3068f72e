# SPDX-License-Identifier: Apache-2.0
"""Do the promises hold with 16-bit weights that are rounded by chance: rho = 0, exact resume, an honest warning?"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.step.measurement import Measurement
from hf_sam.trainer import run_state
from hf_sam.trainer.radius_warnings import tell_realised_norm
from hf_sam.vectors.stochastic_rounding import StochasticRounding
from tests.promises.runs import differences, fingerprint, trainer_for

both_scopes = pytest.mark.parametrize("scope", ["batch", pytest.param("micro_batch", marks=pytest.mark.slow)])


class Telling(SAMTrainer):
    """Notes the seed of every descent."""

    carried = ("seeds",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seeds: list[int] = []

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        def noted(seed: int) -> StochasticRounding:
            self.seeds.append(seed)
            return StochasticRounding(seed)

        with mock.patch.object(run_state, "StochasticRounding", noted):
            return super().training_step(*args, **kwargs)


def in_bfloat16(model: nn.Module) -> None:
    model.to(torch.bfloat16)


def trainer(folder: Path, sam: SAMConfig | None, **settings: Any) -> Any:
    settings = {"prepare": in_bfloat16, "gradient_accumulation_steps": 3, **settings}
    classes = None if sam is None else (Telling, Telling)
    return trainer_for("bert", folder, sam=sam, classes=classes, **settings)


@both_scopes
def test_rho_zero_is_the_plain_trainer_bit_for_bit(scope: str, tmp_path: Path) -> None:
    plain = trainer(tmp_path, None)
    plain.train()
    expected = fingerprint(plain)
    sharp = trainer(tmp_path, SAMConfig(rho=0.0, sam_scope=scope, sam_rounding="stochastic"))
    sharp.train()
    assert sharp.seeds
    assert differences(expected, fingerprint(sharp)) == []


@pytest.mark.slow
def test_the_runs_random_streams_are_where_rounding_to_nearest_leaves_them(tmp_path: Path) -> None:
    nearest, chance = (trainer(tmp_path, SAMConfig(rho=0.05, sam_rounding=r)) for r in ("nearest", "stochastic"))
    found = []
    for one in (nearest, chance):
        torch.manual_seed(0)
        one.train()
        found.append(fingerprint(one))
    changed = differences(*found)
    assert any(name.startswith("weight") for name in changed)
    assert not [name for name in changed if name.startswith("streams")]


@pytest.mark.slow
@both_scopes
def test_a_resumed_run_ends_in_the_same_bits(scope: str, tmp_path: Path) -> None:
    sam = SAMConfig(rho=0.05, sam_scope=scope, sam_rounding="stochastic")
    settings = {"save_strategy": "steps", "save_steps": 1}
    whole = trainer(tmp_path / "whole", sam, **settings)
    whole.train()
    expected = fingerprint(whole)
    again = trainer(tmp_path / "again", sam, **settings)
    torch.rand(7)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert differences({**expected, "logs": None}, {**fingerprint(again), "logs": None}) == []
    assert 0 < len(again.seeds) < len(whole.seeds)
    assert again.seeds == whole.seeds[-len(again.seeds) :]


@pytest.mark.slow
@both_scopes
def test_every_descent_of_a_run_has_noise_of_its_own(scope: str, tmp_path: Path) -> None:
    sharp = trainer(tmp_path, SAMConfig(rho=0.05, sam_scope=scope, sam_rounding="stochastic"))
    sharp.train()
    assert len(set(sharp.seeds)) == len(sharp.seeds) == (14 if scope == "micro_batch" else 6)
    other = trainer(tmp_path, SAMConfig(rho=0.05, sam_scope=scope, sam_rounding="stochastic"), seed=43)
    other.train()
    assert not set(sharp.seeds) & set(other.seeds)


class Crowded(Telling):
    """Runs out of memory in the second descent pass of a step."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self.in_descent_pass and len(inputs["labels"]) > 3 and len(self.seeds) == 2:
            raise RuntimeError("CUDA out of memory.")
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.slow
def test_a_start_with_smaller_batches_rounds_as_a_run_that_began_with_them(tmp_path: Path) -> None:
    sam = SAMConfig(rho=0.05, sam_scope="micro_batch", sam_rounding="stochastic", sam_check_repeatable="off")
    settings = {"prepare": in_bfloat16, "gradient_accumulation_steps": 3}
    found = trainer_for("bert", tmp_path, sam=sam, classes=(Crowded, Crowded), auto_find_batch_size=True, **settings)
    found.train()
    fresh = trainer(tmp_path, sam, per_device_train_batch_size=found._train_batch_size)
    fresh.train()
    assert found._train_batch_size < 4
    assert found.seeds[2:] == fresh.seeds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rounding", "rho", "words"),
    [
        ("nearest", 1e-5, ["sam_rounding='stochastic'", "dtype=torch.float32"]),
        ("stochastic", 0.1, None),
    ],
)
def test_the_warning_names_the_ways_out_that_are_left(
    rounding: str, rho: float, words: list[str] | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        trainer(tmp_path, SAMConfig(rho=rho, sam_rounding=rounding)).train()
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("hf_sam")]
    assert len(messages) == (words is not None)
    assert all(word in messages[0] for word in words or ())


@pytest.mark.parametrize(("realised", "count"), [(1.0, 1), (0.4, 0)])
def test_noise_is_warned_about_where_little_else_is_left(
    realised: float, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    """With numbers given: how many weights of a tiny model move is chance."""
    measured = Measurement(torch.tensor(True), 0.05, torch.tensor(realised), torch.tensor(1.0), torch.tensor(0.05))
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        tell_realised_norm(measured, "stochastic", told := set())
        tell_realised_norm(measured, "stochastic", told)
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("hf_sam")]
    assert len(messages) == count
    assert all(word in message for message in messages for word in ("noise", "larger rho", "dtype=torch.float32"))
