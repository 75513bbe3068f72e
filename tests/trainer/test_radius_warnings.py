# SPDX-License-Identifier: Apache-2.0
"""Is a radius that does no good warned about, once, and a good one not?"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_sam import VARIANTS, SAMConfig
from hf_sam.step.measurement import Measurement
from hf_sam.trainer.radius_warnings import tell_large_radius, tell_nothing_perturbed, tell_realised_norm
from hf_sam.trainer.run_totals import RunTotals
from tests.promises.runs import trainer_for


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("hf_sam")]


def told(
    caplog: pytest.LogCaptureFixture, *, variant: str = "sam", steps: int, first: float, loss: float, **m: float
) -> str:
    """Return what is said at a log with these numbers, the same twice."""
    measured = {"sam/rho": 0.5, "sam/perturbed": 1.0, **{f"sam/{name}": value for name, value in m.items()}}
    totals, given = RunTotals(steps=steps, first_loss=first), set()
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        for _ in range(2):
            tell_large_radius(measured, loss, totals, VARIANTS[variant](), given)
    found = messages(caplog)
    assert len(found) <= 1
    return found[0] if found else ""


# What was measured: a small ViT on digits, MLPs of a few hundred weights, MiniLM, at radii good and bad.
@pytest.mark.parametrize(
    "numbers",
    [
        {"steps": 20, "first": 2.3, "loss": 2.32, "sharpness": 0.09, "grad_cosine": 0.96},
        {"steps": 20, "first": 2.3, "loss": 2.31, "sharpness": 0.06, "grad_cosine": 0.02},  # from scratch, on a plateau
        {"steps": 120, "first": 2.3, "loss": 1.81, "sharpness": 0.13, "grad_cosine": 0.88},
        {"steps": 2, "first": 1.1, "loss": 1.1, "sharpness": 1.2, "grad_cosine": 0.8},
        {"steps": 900, "first": 0.7, "loss": 0.001, "sharpness": 0.05, "grad_cosine": 0.1},  # learnt by heart
        {"steps": 900, "first": 2.3, "loss": 0.4, "sharpness": 3.2, "grad_cosine": 0.74},
        {"steps": 500, "first": 1.5, "loss": 1.48, "sharpness": 0.02, "grad_cosine": 0.9},  # a language model, tuned
        {"steps": 500, "first": -3.0, "loss": -2.9, "sharpness": 0.5, "grad_cosine": 0.5},  # a likelihood
        {"steps": 500, "first": 0.0, "loss": 0.0, "sharpness": 0.0, "grad_cosine": 1.0},
        {"steps": 9, "first": 2.3, "loss": 2.3, "sharpness": 0.4, "grad_cosine": 0.02},
    ],
    ids=str,
)
def test_a_radius_that_learns_is_not_warned_about(numbers: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, **numbers) == ""


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"steps": 1, "first": 0.7, "loss": 0.7, "sharpness": 4.5e5, "grad_cosine": 0.07}, "seems too large"),
        ({"steps": 1, "first": 1.1, "loss": 1.1, "sharpness": 6.5e5, "grad_cosine": 0.32}, "seems too large"),
        ({"steps": 40, "first": 1.2, "loss": 1.1, "sharpness": 26.0, "grad_cosine": 0.15}, "seems too large"),
        ({"steps": 20, "first": 2.31, "loss": 2.31, "sharpness": 0.36, "grad_cosine": 0.02}, "keeps the model from"),
        ({"steps": 150, "first": 1.2, "loss": 1.1, "sharpness": 1.47, "grad_cosine": 0.3}, "keeps the model from"),
    ],
    ids=str,
)
def test_a_radius_that_is_much_too_large_is_warned_about_once(
    numbers: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    message = told(caplog, epsilon_norm=0.5, **numbers)
    assert words in message
    assert "rho=0.05" in message


def test_a_variant_of_one_pass_is_judged_by_its_loss(caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, variant="momentum", steps=50, first=1.2, loss=1.4) == ""
    assert "seems too large" in told(caplog, variant="momentum", steps=50, first=1.2, loss=6.7)


@pytest.mark.parametrize("logging_steps", [1, 500])
def test_a_radius_of_a_million_is_warned_about_in_a_run(
    logging_steps: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        trainer_for("bert", tmp_path, sam=SAMConfig(rho=1e6), max_steps=3, logging_steps=logging_steps).train()
    (message,) = messages(caplog)
    assert "seems too large" in message


@pytest.mark.parametrize(("sam", "count"), [(SAMConfig(sam_start=0.9), 1), (SAMConfig(rho=0.0), 0), (SAMConfig(), 0)])
def test_a_run_that_perturbed_nothing_is_told(sam: SAMConfig, count: int, caplog: pytest.LogCaptureFixture) -> None:
    totals = RunTotals(steps=5, perturbed=0 if sam.sam_start else 5)
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        tell_nothing_perturbed(totals, sam, given := set())
        tell_nothing_perturbed(totals, sam, given)
    found = messages(caplog)
    assert len(found) == count
    assert all("No step of this run perturbed" in message and "sam_start=0.9" in message for message in found)


@pytest.mark.parametrize(("realised", "count"), [(0.0501, 0), (0.049, 0), (0.03, 1)])
def test_a_norm_that_was_realised_is_not_called_a_loss(
    realised: float, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    measured = Measurement(torch.tensor(True), 0.05, torch.tensor(realised), torch.tensor(1.0), torch.tensor(0.05))
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        tell_realised_norm(measured, "nearest", set())
    assert len(messages(caplog)) == count
