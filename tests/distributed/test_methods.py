# SPDX-License-Identifier: Apache-2.0
"""Every method, radius, gate, filter and part of the data on two real processes: is it the step that one would take?"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.launch import Results, distance, run_jobs, runs_everything
from tests.distributed.test_fsdp import accelerated, job, native
from tests.distributed.worker import Job
from tests.tolerances import RELATIVE

pytestmark = pytest.mark.distributed

CLOSE = RELATIVE[torch.float32]
HEAVY = {"arguments": {"optim_args": "momentum=0.9"}}
LONG = {
    "arguments": {"optim_args": "momentum=0.9", "learning_rate": 0.3, "num_train_epochs": 4}
}  # the loss has to fall
ADAPTERS = {"prepare": ["with_lora"], "arguments": {"learning_rate": 1.0}}
METHODS: dict[str, dict[str, Any]] = {  # arguments of the job; those of SAMConfig under "sam"
    "gsam": {"sam": {"rho": 0.1, "sam_variant": "gsam"}},
    "friendly": {"sam": {"rho": 0.1, "sam_variant": "friendly"}},
    "looksam": {"sam": {"rho": 0.1, "sam_variant": "looksam", "sam_variant_kwargs": {"k": 2, "alpha": 0.5}}},
    "momentum": {"sam": {"rho": 0.3, "sam_variant": "momentum"}, **HEAVY},
    "nbar": {"sam": {"rho": 0.5, "sam_variant": "nbar"}, **ADAPTERS},
    "weighted": {"sam": {"rho": 0.1, "sam_sharpness_weight": 0.5, "sam_renormalise": True}},
    "last block": {"sam": {"rho": 0.1, "sam_parameters": "last:1"}},
    "norms": {"sam": {"rho": 0.1, "sam_parameters": "norm"}},
    "loss budget": {"sam": {"rho": 1.0, "rho_schedule": "loss_budget", "rho_schedule_kwargs": {"sigma": 0.05}}},
    "target ascent": {"sam": {"rho": 0.1, "rho_schedule": "target_ascent"}},
    "auto": {"sam": {"rho": "auto"}, **LONG},
    "auto momentum": {"sam": {"rho": "auto", "sam_variant": "momentum"}, **LONG},
    "gradient norm": {"sam": {"rho": 0.1, "sam_gate": "gradient_norm"}},
    "late": {"sam": {"rho": 0.1, "sam_start": 0.5}},
    "half": {"sam": {"rho": 0.1, "ascent_fraction": 0.5}},
}
# A replicated parameter's noise is the same on every process, a shard's is its own.
REPLICATED: dict[str, dict[str, Any]] = {
    "random": {"sam": {"rho": 0.3, "sam_variant": "random"}},
    "flat_lora": {"sam": {"rho": 0.1, "sam_variant": "flat_lora"}, **ADAPTERS},
    "bi_lora": {"sam": {"rho": 0.1, "sam_variant": "bi_lora"}, **ADAPTERS},
}
ALONE = {
    "device, last block": {"sam": {"rho": 0.1, "sam_scope": "device", "sam_parameters": "last:1"}},
    "device, half": {"sam": {"rho": 0.1, "sam_scope": "device", "ascent_fraction": 0.5}},
    "device, friendly": {"sam": {"rho": 0.1, "sam_scope": "device", "sam_variant": "friendly"}},
    "device, late": {"sam": {"rho": 0.1, "sam_scope": "device", "sam_every": 2}},
}
ACCUMULATED = ("momentum", "last block", "auto", "half", "looksam", "gradient norm")
SHARDED = ("friendly", "gsam", "looksam", "momentum", "weighted", "last block", "norms", "loss budget", "auto", "half")


def with_scope(method: dict[str, Any], scope: str) -> dict[str, Any]:
    return {**method, "sam": {**method["sam"], "sam_scope": scope}}


ONE = [
    job("plain", 8, sam=None),
    job("plain, long", 8, sam=None, **LONG),
    job("sam", 8, sam={"rho": 0.1}),
    *(job(name, 8, **method) for name, method in {**METHODS, **REPLICATED}.items()),
    *(job(f"{name}, in two", 4, 2, **METHODS[name]) for name in ACCUMULATED),
    *(job(name, 4, 2, **with_scope(m, "micro_batch")) for name, m in ALONE.items() if "friendly" not in name),
]
PAIRS: list[tuple[Job, str]] = [
    *((job(f"ddp {name}", 4, **method), name) for name, method in {**METHODS, **REPLICATED}.items()),
    *((job(f"ddp {name}, in two", 2, 2, **METHODS[name]), f"{name}, in two") for name in ACCUMULATED),
    *((job(f"ddp {name}", 4, **m), name) for name, m in ALONE.items() if "friendly" not in name),
    *((accelerated(f"fsdp2 {name}", 2, **METHODS[name]), name) for name in SHARDED),
    *((accelerated(f"fsdp2 {n}, in two", 2, 2, 2, **METHODS[n]), f"{n}, in two") for n in ("last block", "half")),
    *((native(f"native {name}", **METHODS[name]), name) for name in ("momentum", "last block", "auto", "half")),
]
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}


def evaluated(method: dict[str, Any]) -> dict[str, Any]:
    """Evaluate before the run and after each step, which leaves FSDP2's root gathered."""
    more = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
    return {**method, "arguments": {**method.get("arguments", {}), **more}}


PAIRS += [
    (accelerated(f"fsdp2 {name}, evaluated", 2, **evaluated(METHODS[name])), name)
    for name in ("momentum", "auto momentum", "friendly", "last block")
]
# On each commit every method runs by DDP, and others of these by each engine and accumulated: the rest is left out.
REST = {
    *(f"fsdp2 {name}" for name in ("gsam", "weighted", "norms", "loss budget")),
    *(f"ddp {name}, in two" for name in ("last block", "auto", "gradient norm")),
    *(f"native {name}" for name in ("last block", "auto")),
}
RUNS = [
    job("ddp device, friendly", 4, **ALONE["device, friendly"]),
    accelerated("fsdp2 random", 2, **REPLICATED["random"]),
    # One decision for all: a process that makes no second pass would be waited for by the others.
    job("ddp gradient norm, other norms", 4, **METHODS["gradient norm"], bad={"uneven": 0.5}),
]
REFUSED: list[tuple[Job, str]] = [
    (job("static last", 4, **METHODS["last block"], arguments={"ddp_static_graph": True}), "ddp_static_graph"),
    (job("device weighted", 4, **with_scope(METHODS["weighted"], "device")), "Use sam_scope='batch'"),
    (accelerated("fsdp1 last", 1, **METHODS["last block"]), "sam_parameters='last:1'"),
    (accelerated("fsdp1 momentum", 1, **METHODS["momentum"]), "sam_variant='momentum'"),
]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_jobs(tmp_path_factory.mktemp("one"), 1, ONE)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Results:
    jobs = [*(pair[0] for pair in PAIRS), *RUNS, *(pair[0] for pair in REFUSED)]
    jobs = [each for each in jobs if each.name not in REST or runs_everything(request)]
    return run_jobs(tmp_path_factory.mktemp("two"), 2, jobs)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        pytest.param(pair[0].name, pair[1], marks=[pytest.mark.everything] * (pair[0].name in REST), id=pair[0].name)
        for pair in PAIRS
    ],
)
def test_two_processes_take_the_steps_of_one(name: str, same: str, one: Results, two: Results) -> None:
    expected = one[same][0]
    for found in two[name]:
        assert (found["world"], found["steps"]) == (2, expected["steps"])
        assert distance(found, expected) <= CLOSE
    assert two[name][0]["after_steps"] == two[name][1]["after_steps"]
    if same not in ("nbar", "bi_lora", "flat_lora"):  # of adapters, which have other weights
        plain = "plain, long" if same.startswith("auto") else "plain"
        assert distance(one[same][0], one[plain][0]) > 10 * CLOSE, "the line above could not fail"


@pytest.mark.parametrize("name", [run.name for run in RUNS])
def test_processes_agree_where_no_single_one_would_do_the_same(name: str, two: Results) -> None:
    first, second = two[name]
    assert first["after_steps"] == second["after_steps"]
    assert torch.isfinite(torch.cat([v.flatten() for k, v in first.items() if k.startswith("weight ")])).all()


@pytest.mark.parametrize(("name", "reason"), [(pair[0].name, pair[1]) for pair in REFUSED])
def test_what_cannot_be_is_refused_on_every_process(name: str, reason: str, two: Results) -> None:
    assert reason in two.error(name)
