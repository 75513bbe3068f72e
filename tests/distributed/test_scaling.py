# SPDX-License-Identifier: Apache-2.0
"""Does a step send what docs/scaling.md computes? Counted on two processes, HSDP on four."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from scripts.benchmarks.common.traffic import ENGINES, SCOPES, Weights, step
from scripts.benchmarks.evidence.scaling_tables import COUNTED, counted_weights
from tests.distributed.launch import Results, run_jobs
from tests.distributed.worker import Job

pytestmark = pytest.mark.distributed

STEPS = 3  # in the first two SAM tests whether a pass can be repeated
BY_LAYER = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
ZERO = {
    "zero_allow_untested_optimizer": True,
    **dict.fromkeys(("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto"),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "DDP": {},
    "FSDP2": {"engine": "fsdp2", "arguments": {"fsdp": True, "fsdp_config": BY_LAYER}},
    "HSDP": {"engine": "native", "options": {"fsdp_size": 2, "dp_replicate_size": 2}},
    **{
        f"ZeRO {stage}": {
            "engine": "deepspeed",
            "arguments": {"use_cpu": False, "deepspeed": {"zero_optimization": {"stage": stage}, **ZERO}},
        }
        for stage in (1, 2)
    },
}


def job(engine: str, scope: str | None, micro_batches: int = 2, **more: Any) -> Job:
    """Return three steps that log nothing on the way."""
    how = {key: dict(value) if isinstance(value, dict) else value for key, value in SETTINGS[engine].items()}
    arguments = {
        "max_steps": STEPS,
        "logging_steps": 1000,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": micro_batches,
        **how.pop("arguments", {}),
        **more.pop("arguments", {}),
    }
    sam = None if scope is None else {"rho": 0.1, "sam_scope": scope}
    name = more.pop("name", f"{engine} {scope}")
    return Job(name, "paired", prepare=["without_dropout"], sam=sam, arguments=arguments, **how, **more)


COUNTS = [
    (engine, scope)
    for engine in ENGINES
    for scope in (None, *SCOPES)
    if step(engine, scope, COUNTED, shards=2) is not None and (engine, scope) != ("HSDP", "micro_batch")
]
BF16 = [job("FSDP2", "batch", 1, name="bf16", arguments={"bf16": True})]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder, results = tmp_path_factory.mktemp("counts"), Results()
    groups = {"": (2, [*BF16]), "HSDP": (4, []), "ZeRO": (2, [])}
    for engine, scope in COUNTS:
        groups[engine.split()[0] if engine.split()[0] in groups else ""][1].append(job(engine, scope))
    for name, (processes, jobs) in groups.items():
        if name != "ZeRO" or importlib.util.find_spec("deepspeed"):
            module = (
                "tests.distributed.traffic_deepspeed_worker" if name == "ZeRO" else "tests.distributed.traffic_worker"
            )
            results.update(dict.items(run_jobs(folder / (name or "two"), processes, jobs, module)))
    return results


def bytes_sent(result: dict[str, Any]) -> dict[str, int]:
    """Return the bytes by kind in the last step."""
    return {kind: size for kind, (_, size) in result["traffic"][-1].items()}


@pytest.mark.parametrize(("engine", "scope"), COUNTS)
def test_a_step_sends_what_the_page_says(engine: str, scope: str | None, found: Results) -> None:
    expected = step(engine, scope, counted_weights(engine), micro_batches=2, shards=2)
    for result in found[f"{engine} {scope}"]:
        assert len(result["traffic"]) == STEPS
        assert (result["parameters"], result["buffers"]) == (4 * COUNTED.number, COUNTED.buffers)
        assert expected is not None
        assert bytes_sent(result) == expected.sizes()


def test_in_bf16_fsdp2_sends_two_bytes_a_weight(found: Results) -> None:
    half = Weights(COUNTED.number, gradient=2, gathered=2, kept=counted_weights("FSDP2").kept // 2)
    expected = step("FSDP2", "batch", half)
    assert expected is not None
    assert [bytes_sent(result) for result in found["bf16"]] == [expected.sizes()] * 2
