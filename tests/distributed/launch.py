# SPDX-License-Identifier: Apache-2.0
"""How does a test start several processes, and what did each of them find?"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from transformers import TrainingArguments
from transformers.distributed import DistributedConfig

from tests import warm
from tests.distributed.worker import Job


def torchrun(processes: int, *arguments: Any) -> list[str]:
    """Return the command that runs a module on several processes of this machine."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*run, "--module", *map(str, arguments)]


FSDP2_ON_CPU = "ignored_params" in signature(fully_shard).parameters
"""Newer than torch 2.6, where `fully_shard` needs a GPU and accelerate cannot call it."""


def unavailable(job: Job) -> str | None:
    """Return what of `job` the installed versions cannot do with the plain Trainer either, None if they can all."""
    if job.resume and not FSDP2_ON_CPU:
        return "torch that cannot read a file's tensors back to the device `cpu:0`"
    if "ddp_static_graph" in job.arguments and not hasattr(TrainingArguments, "ddp_static_graph"):
        return "transformers without ddp_static_graph"
    if job.engine == "native" and "fsdp_size" not in signature(DistributedConfig).parameters:
        return "transformers that does not shard"
    if job.engine == "fsdp2" and not FSDP2_ON_CPU:
        return "torch whose fully_shard accelerate cannot call"
    return None


class Results(dict[str, list[dict[str, Any]]]):
    """By job, what each process found. One that failed says so when it is asked for; one that cannot run is skipped."""

    def __missing__(self, name: str) -> list[dict[str, Any]]:
        pytest.skip(f"{name!r} needs newer versions")

    def __getitem__(self, name: str) -> list[dict[str, Any]]:
        found = super().__getitem__(name) if name in self else self.__missing__(name)
        for rank, result in enumerate(found):
            if "error" in result:
                raise AssertionError(f"{name} failed on process {rank}:\n{result['trace']}")
        return found

    def error(self, name: str) -> str:
        """Return with what error a job failed on every process, which has to be the same one."""
        found = super().__getitem__(name) if name in self else self.__missing__(name)
        (message,) = {result["error"] for result in found}
        return message


def run_jobs(folder: Path, processes: int, jobs: list[Job], worker: str = "tests.distributed.worker") -> Results:
    """Run the jobs one after the other, in so many processes of the module `worker`, which torchrun could start.

    Those of a single process are run two at a time, unless one goes on where another ended.
    """
    jobs = [job for job in jobs if unavailable(job) is None]
    if not jobs:
        return Results()
    apart = processes == 1 and len(jobs) > 1 and not any(job.resume for job in jobs)
    parts = [jobs[::2], jobs[1::2]] if apart else [jobs]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"jobs{number}.json" for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        path.write_text(json.dumps([asdict(job) for job in part]))
    log = folder / "beside.log"
    beside = [warm.start(worker, path, folder, log=log) for path in paths[1:]]
    try:
        warm.run_together(processes, worker, paths[0], folder, logs=folder)
    finally:
        codes = warm.end_together(beside)
    assert not any(codes), f"{worker} ended with {codes}:\n{warm.end_of(log)}"
    results = Results()
    for job in jobs:
        results[job.name] = [
            torch.load(folder / f"{job.name}.{rank}.pt", weights_only=False) for rank in range(processes)
        ]
    return results


def runs_everything(request: pytest.FixtureRequest) -> bool:
    """Return whether tests of this file are to be run that only `make test-everything` runs: they need jobs too."""
    here = [item for item in request.session.items if item.path == request.path]
    return any(item.get_closest_marker("everything") for item in here)


def marked(names: Iterable[str], rest: Collection[str]) -> list[Any]:
    """Return parameters of a test, with those in `rest` left to `make test-everything`."""
    return [pytest.param(name, marks=pytest.mark.everything) if name in rest else name for name in names]


def weights(found: dict[str, Any]) -> torch.Tensor:
    """Return all weights of a result as one float64 vector."""
    return torch.cat([v.double().flatten() for k, v in found.items() if k.startswith("weight ")])


def distance(left: dict[str, Any], right: dict[str, Any]) -> float:
    """Return the largest difference between the final weights of two runs."""
    return (weights(left) - weights(right)).abs().max().item()
