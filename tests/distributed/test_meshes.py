# SPDX-License-Identifier: Apache-2.0
"""Weights on meshes of several dimensions: is the perturbation that of the whole model there too?"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.launch import Results, distance, run_jobs
from tests.distributed.worker import Job
from tests.tolerances import RELATIVE

pytestmark = pytest.mark.distributed

CLOSE = RELATIVE[torch.float32]
MICRO = {"rho": 0.1, "sam_scope": "micro_batch"}
ASAM = {"rho": 0.5, "sam_variant": "asam"}


def job(name: str, size: int, accumulation: int = 1, **more: Any) -> Job:
    arguments = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": 1,
    }
    return Job(name, "paired", prepare=["without_dropout"], arguments=arguments, **more)


def meshed(name: str, mesh: dict[str, Any], size: int, accumulation: int = 1, **more: Any) -> Job:
    return job(name, size, accumulation, engine="native", options=mesh, **more)


ONE = [job("sam", 8), job("asam", 8, sam=ASAM), job("micro", 4, 2, sam=MICRO), job("plain", 8, sam=None)]
HYBRID = {"fsdp_size": 2, "dp_replicate_size": 2}
TENSOR = {"fsdp_size": 1, "tp_size": 2, "tp_plan": "auto"}
BOTH = {"fsdp_size": 2, "tp_size": 2, "tp_plan": "auto"}

# Processes, the job on them, and what one process would call it.
RUNS: list[tuple[int, Job, str]] = [
    (4, meshed("HSDP", HYBRID, 2), "sam"),
    (4, meshed("HSDP, accumulated", HYBRID, 1, 2), "sam"),
    (4, meshed("HSDP, micro", HYBRID, 1, 2, sam=MICRO), "micro"),
    (4, meshed("TP and FSDP", BOTH, 4), "sam"),
    (2, meshed("TP", TENSOR, 8), "sam"),
    (2, meshed("TP, accumulated", TENSOR, 4, 2), "sam"),
    (2, meshed("TP, asam", TENSOR, 8, sam=ASAM), "asam"),
    (2, meshed("TP, micro", TENSOR, 4, 2, sam=MICRO), "micro"),
    (2, meshed("TP, device", TENSOR, 8, sam={"rho": 0.1, "sam_scope": "device"}), "refused"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Results:
    results = run_jobs(tmp_path_factory.mktemp("one"), 1, ONE)
    for processes in (2, 4):
        jobs = [entry for count, entry, _ in RUNS if count == processes]
        results.update(dict.items(run_jobs(tmp_path_factory.mktemp("several"), processes, jobs)))
    return results


@pytest.mark.parametrize(("processes", "name", "same"), [(n, j.name, same) for n, j, same in RUNS if same != "refused"])
def test_a_mesh_trains_and_measures_as_one_process(processes: int, name: str, same: str, found: Results) -> None:
    expected = found[same][0]
    for result in found[name]:
        assert (result["world"], result["steps"]) == (processes, expected["steps"])
        assert distance(result, expected) <= CLOSE
        for key in ("sam/epsilon_norm", "sam/grad_cosine", "sam/sharpness", "grad_norm"):
            assert result["history"][0][key] == pytest.approx(expected["history"][0][key], rel=1e-3), key
    assert distance(found[name][0], found["plain"][0]) > 1e-3


def test_scope_device_is_refused_under_tensor_parallelism(found: Results) -> None:
    assert "sam_scope='device'" in found.error("TP, device")
