# SPDX-License-Identifier: Apache-2.0
"""Promise 10 on two processes: a resumed run has the bits of the uninterrupted one, sharded or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import Results, distance, run_jobs
from tests.distributed.worker import Job
from tests.promises.runs import differences

pytestmark = pytest.mark.distributed

# Not FSDP1: the plain Trainer does not resume it in the same bits, and crashes saving its full state dict on a CPU.
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2, full": {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}},
    "fsdp2, sharded": {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}},
}
# accelerate's FSDP2 cannot wrap ViT's embeddings.
LAYERS = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "transformer_layer_cls_to_wrap": ["ViTLayer"]}
VIT = {"fsdp2, layers": {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT", **LAYERS}}}
MEMORY = {"rho": 0.2, "sam_variant": "remembering"}
LOOK = {"rho": 0.2, "sam_variant": "looksam", "sam_variant_kwargs": {"k": 3}}
CASES = {
    **{f"{engine} sam": (engine, {"rho": 0.2}) for engine in ENGINES},
    **{f"ddp {scope}": ("ddp", {**MEMORY, "sam_scope": scope}) for scope in ("batch", "device", "micro_batch")},
    "fsdp2, full remembering": ("fsdp2, full", MEMORY),
    "fsdp2, sharded remembering": ("fsdp2, sharded", MEMORY),
    "ddp looksam": ("ddp", LOOK),
    "fsdp2, sharded looksam": ("fsdp2, sharded", LOOK),
    "ddp friendly": ("ddp", {"rho": 0.2, "sam_variant": "friendly"}),
    "fsdp2, full friendly": ("fsdp2, full", {"rho": 0.2, "sam_variant": "friendly"}),
    "ddp auto": ("ddp", {"rho": "auto"}),
    "fsdp2, sharded auto": ("fsdp2, sharded", {"rho": "auto"}),
    # Tensors that have other names in files than in memory (hf_sam.trainer.reload).
    "vit ddp": ("ddp", {"rho": 0.2}),
    "vit fsdp2, layers": ("fsdp2, layers", {"rho": 0.2}),
    # An evaluation leaves FSDP2's outermost weights gathered.
    "still fsdp2, full": ("fsdp2, full", {"rho": 0.2}),
    "still fsdp2, full, evaluated": ("fsdp2, full", {"rho": 0.2}),
}


def jobs_of(name: str) -> list[Job]:
    engine, sam = CASES[name]
    arguments = {
        **{**ENGINES, **VIT}[engine],
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    if name.endswith("evaluated"):
        arguments = {**arguments, "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
    whole = Job(
        name,
        family="vit" if name.startswith("vit") else "llama",
        engine=engine.split(",")[0],
        sam=sam,
        arguments=arguments,
        prepare=["without_dropout"] if name.startswith("still") else [],
    )
    return [whole, replace(whole, name=f"{name}, resumed", resume=f"{name}/checkpoint-4")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def found(folder: Path) -> Results:
    return run_jobs(folder, 2, [job for name in CASES for job in jobs_of(name)])


def state(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k not in ("history", "logs", "after_steps", "collectives")}


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_has_the_bits_of_the_whole_one(name: str, found: Results) -> None:
    for whole, again in zip(found[name], found[f"{name}, resumed"], strict=True):
        assert differences(state(whole), state(again)) == []
        assert whole["steps"] == 6
        assert again["after_steps"] == whole["after_steps"][4:]


def test_an_evaluation_does_not_change_what_is_perturbed(found: Results) -> None:
    plain, evaluated = (found[name][0] for name in ("still fsdp2, full", "still fsdp2, full, evaluated"))
    assert distance(plain, evaluated) == 0.0
    assert any("eval_loss" in entry for entry in evaluated["history"])
    assert all(
        entry["sam/epsilon_norm"] == pytest.approx(0.2, rel=1e-4) for entry in evaluated["history"] if "loss" in entry
    )


@pytest.mark.parametrize("name", CASES)
def test_a_memory_is_kept_for_each_process_where_it_differs(name: str, found: Results, folder: Path) -> None:
    assert found[name]
    files = {path.name for path in (folder / name / "checkpoint-4").glob("sam_state*")}
    memory = CASES[name][1] != {"rho": 0.2}
    own = "device" in name or "micro" in name or ("fsdp" in name and memory)
    expected = {"sam_state.json"} | ({"sam_state.safetensors"} if memory else set())
    assert files == expected | ({"sam_state.1.json", "sam_state.1.safetensors"} if own else set())


def test_another_number_of_processes_is_refused_where_each_has_its_own_memory(found: Results, folder: Path) -> None:
    assert found["ddp device"]
    arguments = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    for scope in ("device", "batch"):
        sam = {**MEMORY, "sam_scope": scope}
        resume = f"ddp {scope}/checkpoint-4"
        job = Job(f"alone {scope}", resume=resume, sam=sam, arguments={**arguments, "optim": "adamw_torch"})
        results = run_jobs(folder, 1, [job])
        if scope == "batch":  # one memory for all: goes on, with other batches
            assert results["alone batch"]
        else:
            message = results.error("alone device")
            assert "the state of 2 processes, now there are 1" in message
            assert "Resume from another checkpoint" in message
