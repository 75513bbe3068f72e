# SPDX-License-Identifier: Apache-2.0
"""Promise 8 on two processes: an overflow in either pass, on one of them only, with the real GradScaler's logic."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.distributed.launch import Results, run_jobs, weights
from tests.distributed.worker import Job
from tests.promises.runs import differences

pytestmark = pytest.mark.distributed

SCALE = 2.0**10
BAD_STEP = 2
SCOPES = ("batch", "device", "micro_batch")
PASSES = {"ascent": ["ascent"], "descent": ["descent"], "both": ["ascent", "descent"]}


def job(name: str, sam: dict[str, Any] | None, passes: list[str], **more: Any) -> Job:
    bad = {"step": BAD_STEP, "ranks": [1], "passes": passes, "factor": "inf"}
    return Job(name, family="bert", sam=sam, scaler=SCALE, bad=bad, **more)


JOBS = [
    job("plain", None, ["ascent"]),
    *(job(f"zero {scope}", {"rho": 0.0, "sam_scope": scope}, PASSES["both"]) for scope in SCOPES),
    *(job(f"{p} {s}", {"rho": 0.1, "sam_scope": s}, PASSES[p]) for p in PASSES for s in SCOPES),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_jobs(tmp_path_factory.mktemp("runs"), 2, JOBS)


def state(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k not in ("history", "collectives")}


@pytest.mark.parametrize("scope", SCOPES)
def test_at_rho_zero_the_scale_falls_and_grows_as_the_plain_trainers(scope: str, found: Results) -> None:
    for plain, sharp in zip(found["plain"], found[f"zero {scope}"], strict=True):
        assert differences(state(plain), state(sharp)) == []
        assert plain["scaler"]["scale"] == SCALE / 2 * 2  # halved once, doubled after three good steps
        assert plain["after_steps"][BAD_STEP] == plain["after_steps"][BAD_STEP - 1]  # the step was skipped


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("where", PASSES)
def test_processes_agree_and_weights_stay_finite(where: str, scope: str, found: Results) -> None:
    first, second = found[f"{where} {scope}"]
    assert first["after_steps"] == second["after_steps"]
    assert differences({"scaler": first["scaler"]}, {"scaler": second["scaler"]}) == []
    assert torch.isfinite(weights(first)).all()
    assert len(set(first["after_steps"])) >= first["steps"] - 1


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("where", PASSES)
def test_a_step_whose_own_gradient_is_infinite_is_skipped_on_every_process(
    where: str, scope: str, found: Results
) -> None:
    """The optimizer sees the descent pass only: an overflow of the ascent pass costs the perturbation, no more."""
    result = found[f"{where} {scope}"][0]
    skipped = result["after_steps"][BAD_STEP] == result["after_steps"][BAD_STEP - 1]
    assert skipped == (where != "ascent")


@pytest.mark.parametrize(("scope", "share"), [("batch", 1.0), ("device", 0.5), ("micro_batch", 0.5)])
def test_the_share_of_processes_that_could_not_climb_is_logged(scope: str, share: float, found: Results) -> None:
    for result in found[f"ascent {scope}"]:
        logged = [entry["sam/skipped"] for entry in result["history"] if "sam/skipped" in entry]
        assert logged == [share if step == BAD_STEP else 0.0 for step in range(result["steps"])]
        assert all(
            math.isfinite(entry["sam/epsilon_norm"]) for entry in result["history"] if "sam/epsilon_norm" in entry
        )
