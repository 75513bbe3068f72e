# SPDX-License-Identifier: Apache-2.0
"""Two launches as if on two machines: do they train one model?"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.launch import Results, run_jobs
from tests.distributed.launching import finish, free_port
from tests.distributed.worker import Job
from tests.promises.runs import differences
from tests.warm import ROOT, environment

pytestmark = pytest.mark.distributed

SAVING = {"optim": "adamw_torch", "learning_rate": 1e-2, "save_strategy": "epoch"}
FSDP2 = {"fsdp": True, "fsdp_config": {"version": 2}}
JOBS = [
    Job("batch", sam={"rho": 0.2}, arguments=SAVING),
    Job("device", sam={"rho": 0.2, "sam_scope": "device"}, arguments=SAVING),
    Job("fsdp2", engine="fsdp2", sam={"rho": 0.2}, arguments={**SAVING, **FSDP2}),
]
NAMES = [job.name for job in JOBS]


def node(rank: int, port: str, folder: Path) -> subprocess.Popen[str]:
    """Launch on one of two machines, each with an address of its own and one process, its local rank 0."""
    address = ["--local_addr", f"127.0.0.{rank + 1}", "--master_addr", "127.0.0.1", "--master_port", port]
    nodes = ["--nnodes", "2", "--node_rank", str(rank), "--nproc_per_node", "1"]
    module = ["--module", "tests.distributed.worker", str(folder / "jobs.json"), str(folder)]
    command = [sys.executable, "-m", "torch.distributed.run", *nodes, *address, *module]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_jobs(tmp_path_factory.mktemp("one"), 2, JOBS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in JOBS]))
    port = free_port()
    finish(*[node(rank, port, folder) for rank in (0, 1)])
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> Results:
    found = [{name: torch.load(folder / f"{name}.{rank}.pt", weights_only=False) for name in NAMES} for rank in (0, 1)]
    return Results({name: [process[name] for process in found] for name in NAMES})


@pytest.mark.parametrize("name", NAMES)
def test_two_machines_train_as_one(name: str, one: Results, two: Results) -> None:
    first, second = two[name]
    assert first["world"] == second["world"] == 2
    assert first["after_steps"] == second["after_steps"]
    assert len(set(first["after_steps"])) == first["steps"] > 1  # it did train
    for process, alone in zip(two[name], one[name], strict=True):
        assert differences(process, {**alone, "history": process["history"]}) == []


@pytest.mark.parametrize("name", NAMES)
def test_their_checkpoint_is_one(name: str, folder: Path, two: Results) -> None:
    checkpoint = folder / name / f"checkpoint-{two[name][0]['steps']}"
    names = {path.name for path in checkpoint.iterdir()}
    assert {"model.safetensors", "trainer_state.json", "rng_state_0.pth", "rng_state_1.pth"} <= names
