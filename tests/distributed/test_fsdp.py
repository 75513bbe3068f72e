# SPDX-License-Identifier: Apache-2.0
"""Sharded weights on two real processes: is the perturbation that of the whole model?"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.launch import Results, distance, run_jobs
from tests.distributed.worker import Job
from tests.tolerances import RELATIVE

pytestmark = pytest.mark.distributed

CLOSE = RELATIVE[torch.float32]
BF16 = 5e-4  # of weights that move by 1e-2: two runs that round activations to 8 bits


def job(name: str, size: int = 4, accumulation: int = 1, **more: Any) -> Job:
    given = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
    arguments = {**given, **more.pop("arguments", {})}
    return Job(name, prepare=["without_dropout", *more.pop("prepare", [])], arguments=arguments, **more)


def fsdp(version: int, **config: Any) -> dict[str, Any]:
    fixed = {"sync_module_states": False} if version == 1 else {}
    config = {"version": version, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", **fixed, **config}
    return {"fsdp": True, "fsdp_config": config}


def accelerated(name: str, version: int, size: int = 4, accumulation: int = 1, **more: Any) -> Job:
    config = {k: more.pop(k) for k in ("reshard_after_forward", "activation_checkpointing", "cpu_offload") if k in more}
    arguments = {**fsdp(version, **config), **more.pop("arguments", {})}
    return job(name, size, accumulation, engine=f"fsdp{version}", arguments=arguments, **more)


def native(name: str, size: int = 4, accumulation: int = 1, **more: Any) -> Job:
    return job(name, size, accumulation, engine="native", **more)


ASAM, MICRO = {"rho": 0.5, "sam_variant": "asam"}, {"rho": 0.1, "sam_scope": "micro_batch"}
DEVICE = {"rho": 0.1, "sam_scope": "device"}
LORA = {"prepare": ["with_lora"], "arguments": {"learning_rate": 1.0}}
MIXED = {"prepare": ["with_lora", "with_trainable_norms"], "arguments": {"learning_rate": 0.5}}

ONE = [
    job("sam", 8),
    job("asam", 8, sam=ASAM),
    job("micro", 4, 2, sam=MICRO),
    job("lora", 8, **LORA),
    job("mixed", 8, **MIXED),
    job("bf16", 8, arguments={"bf16": True}),
]
TWO = [  # the job, what one process would call it, how close
    (native("native"), "sam", CLOSE),
    (native("native, accumulated", 2, 2), "sam", CLOSE),
    (native("native, asam", sam=ASAM), "asam", CLOSE),
    (native("native, micro", 2, 2, sam=MICRO), "micro", CLOSE),
    (native("native lora", **LORA), "lora", CLOSE),
    (native("native lora, accumulated", 2, 2, **LORA), "lora", CLOSE),
    (native("native lora beside trained shards", **MIXED), "mixed", CLOSE),
    (accelerated("fsdp2", 2), "sam", CLOSE),
    (accelerated("fsdp2, accumulated", 2, 2, 2), "sam", CLOSE),
    (accelerated("fsdp2, asam", 2, sam=ASAM), "asam", CLOSE),
    (accelerated("fsdp2, micro", 2, 2, 2, sam=MICRO), "micro", CLOSE),
    (accelerated("fsdp2, unsharded after forward", 2, 2, 2, reshard_after_forward=False), "sam", CLOSE),
    (accelerated("fsdp2, activation checkpointing", 2, activation_checkpointing=True), "sam", CLOSE),
    (accelerated("fsdp2, bf16", 2, arguments={"bf16": True}), "bf16", BF16),
    (accelerated("fsdp2 lora", 2, **LORA), "lora", CLOSE),
    (accelerated("fsdp1", 1), "sam", CLOSE),
    (accelerated("fsdp1, accumulated", 1, 2, 2), "sam", CLOSE),
    (accelerated("fsdp1, micro", 1, 2, 2, sam=MICRO), "micro", CLOSE),
    (accelerated("fsdp1, gradients only", 1, reshard_after_forward="SHARD_GRAD_OP"), "sam", CLOSE),
]
REFUSED = [
    (native("native, device", sam=DEVICE), "sam_scope='device'"),
    (accelerated("fsdp2, device", 2, sam=DEVICE), "sam_scope='device'"),
    (accelerated("fsdp1, device", 1, sam=DEVICE), "sam_scope='device'"),
    (accelerated("fsdp1, asam", 1, sam=ASAM), "Use FSDP2"),
    (accelerated("fsdp2, offloaded", 2, cpu_offload=True), "CPU offload"),
]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_jobs(tmp_path_factory.mktemp("one"), 1, ONE)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_jobs(tmp_path_factory.mktemp("two"), 2, [entry[0] for entry in (*TWO, *REFUSED)])


@pytest.mark.parametrize(("name", "same", "close"), [(entry[0].name, *entry[1:]) for entry in TWO])
def test_two_processes_train_as_one(name: str, same: str, close: float, one: Results, two: Results) -> None:
    expected = one[same][0]
    for found in two[name]:
        assert (found["world"], found["steps"]) == (2, expected["steps"])
        assert found["engine"] == ("FSDP" if name.startswith("fsdp") else "MULTI_CPU")
        assert distance(found, expected) <= close
    others = {"lora": [], "mixed": [], "bf16": ["micro"], "micro": ["sam"]}.get(same, ["micro"])
    assert all(distance(two[name][0], one[other][0]) > 1e-3 for other in others)  # the line above could fail


@pytest.mark.parametrize("name", [entry[0].name for entry in TWO])
def test_every_process_measures_the_whole_perturbation(name: str, one: Results, two: Results) -> None:
    same = next(entry[1] for entry in TWO if entry[0].name == name)
    expected = one[same][0]["history"][0]
    for found in two[name]:
        entry = found["history"][0]
        for key in ("sam/epsilon_norm", "sam/grad_cosine", "sam/sharpness", "grad_norm"):
            rel = 0.05 if "bf16" in name else 1e-3
            assert entry[key] == pytest.approx(expected[key], rel=rel), key


@pytest.mark.parametrize(("name", "reason"), [(entry[0].name, entry[1]) for entry in REFUSED])
def test_what_shards_cannot_do_is_refused_on_every_process(name: str, reason: str, two: Results) -> None:
    message = two.error(name)
    assert message.startswith("NotImplementedError: ")
    assert reason in message
