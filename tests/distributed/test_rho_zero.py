# SPDX-License-Identifier: Apache-2.0
"""Promise 1 on two processes: with rho = 0 every engine's run is the plain Trainer's, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.launch import Results, run_jobs
from tests.distributed.worker import Job
from tests.promises.runs import differences

pytestmark = pytest.mark.distributed

SCOPES = ("batch", "device", "micro_batch")
NATIVE = {"engine": "native"}
FSDP2 = {"engine": "fsdp2", "arguments": {"fsdp": True, "fsdp_config": {"version": 2}}}
FSDP1 = {"engine": "fsdp1", "arguments": {"fsdp": True, "fsdp_config": {"version": 1, "sync_module_states": False}}}
THREE = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-2, "num_train_epochs": 1}

# What to train, and the scopes in which it has to be the plain Trainer's. Sharded gradients of single micro-batches are
# reduced one by one in scope micro_batch, which with accumulation adds them in another order.
RUNS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "bert": ({"family": "bert"}, SCOPES),
    "bert, accumulated": ({"family": "bert", "arguments": {"gradient_accumulation_steps": 2}}, SCOPES),
    "llama": ({"family": "llama", "arguments": {**THREE}}, SCOPES),
    "resnet": ({"family": "resnet", "arguments": {"gradient_accumulation_steps": 2}}, SCOPES),
    "lora": ({"family": "lora", "arguments": {"gradient_accumulation_steps": 2}}, SCOPES),
    "bf16": ({"family": "bert", "arguments": {"bf16": True}}, SCOPES),
    "native": (NATIVE, ("batch", "micro_batch")),
    "native, accumulated": ({**NATIVE, "arguments": {**THREE}}, ("batch",)),
    "native lora": ({**NATIVE, "prepare": ["with_lora"], "arguments": {**THREE}}, ("batch",)),
    "fsdp2": (FSDP2, ("batch", "micro_batch")),
    "fsdp2, accumulated": (
        {"engine": "fsdp2", "arguments": {**FSDP2["arguments"], **THREE}},
        ("batch",),
    ),
    "fsdp1": (FSDP1, ("batch", "micro_batch")),
}


def jobs_of(name: str) -> list[Job]:
    settings, scopes = RUNS[name]
    settings = {**settings, "arguments": {**ADAM, **settings.get("arguments", {})}}
    sharp = [Job(f"{name} {scope}", sam={"rho": 0.0, "sam_scope": scope}, **settings) for scope in scopes]
    return [Job(name, sam=None, **settings), *sharp]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_jobs(tmp_path_factory.mktemp("runs"), 2, [job for name in RUNS for job in jobs_of(name)])


def without_measurements(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k not in ("history", "collectives")}


@pytest.mark.parametrize(("name", "scope"), [(name, scope) for name in RUNS for scope in RUNS[name][1]])
def test_the_run_is_the_plain_trainers(name: str, scope: str, found: Results) -> None:
    for plain, sharp in zip(found[name], found[f"{name} {scope}"], strict=True):
        assert differences(without_measurements(plain), without_measurements(sharp)) == []
        assert sum(bool(entry.get("sam/perturbed")) for entry in sharp["history"]) == sharp["steps"] > 1
        assert len(set(plain["after_steps"])) == plain["steps"]  # it did train
