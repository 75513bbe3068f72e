# SPDX-License-Identifier: Apache-2.0
"""How does a test start several processes, and what did each of them find?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tests.distributed.worker import Job

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 600


def environment() -> dict[str, str]:
    """Return the environment for a launch: one thread a process, nothing left of an earlier launch."""
    left = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC", "ACCELERATE_", "FSDP_", "GROUP_", "ROLE_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(left)}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def torchrun(processes: int, *arguments: Any) -> list[str]:
    """Return the command that runs a module on several processes of this machine."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*run, "--module", *map(str, arguments)]


class Results(dict[str, list[dict[str, Any]]]):
    """By job, what each process found. A job that failed says so when it is asked for."""

    def __getitem__(self, name: str) -> list[dict[str, Any]]:
        found = super().__getitem__(name)
        for rank, result in enumerate(found):
            if "error" in result:
                raise AssertionError(f"{name} failed on process {rank}:\n{result['trace']}")
        return found

    def error(self, name: str) -> str:
        """Return with what error a job failed on every process, which has to be the same one."""
        (message,) = {result["error"] for result in super().__getitem__(name)}
        return message


def run_jobs(folder: Path, processes: int, jobs: list[Job]) -> Results:
    """Run the jobs one after the other, in one launch of so many processes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "jobs.json"
    path.write_text(json.dumps([asdict(job) for job in jobs]))
    module = ("tests.distributed.worker", path, folder)
    command = torchrun(processes, *module) if processes > 1 else [sys.executable, "-m", *map(str, module)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    results = Results()
    for job in jobs:
        results[job.name] = [
            torch.load(folder / f"{job.name}.{rank}.pt", weights_only=False) for rank in range(processes)
        ]
    return results


def weights(found: dict[str, Any]) -> torch.Tensor:
    """Return all weights of a result as one float64 vector."""
    return torch.cat([v.double().flatten() for k, v in found.items() if k.startswith("weight ")])


def distance(left: dict[str, Any], right: dict[str, Any]) -> float:
    """Return the largest difference between the final weights of two runs."""
    return (weights(left) - weights(right)).abs().max().item()
