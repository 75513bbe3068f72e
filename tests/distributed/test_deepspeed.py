# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed (ZeRO 0, 1, 2) on two real processes: is a step the plain Trainer's with rho = 0, DDP's with more?"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.launch import Results, distance, marked, run_jobs, runs_everything, weights
from tests.distributed.worker import Job
from tests.promises.runs import differences
from tests.tolerances import RELATIVE
from tests.warm import ROOT

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install deepspeed==0.19.8")
pytestmark = pytest.mark.distributed

CLOSE = RELATIVE[torch.float32]
STAGES = (0, 1, 2)
RHO_0, SAM, ASAM, MIXING, REMEMBERING = (
    {"rho": 0.0},
    {"rho": 0.1},
    {"rho": 0.5, "sam_variant": "asam"},
    {"rho": 0.1, "sam_variant": "mixing"},
    {"rho": 0.1, "sam_variant": "remembering"},
)
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-2}
TWICE = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
FIND = {"auto_find_batch_size": True, "skip_memory_metrics": True}


def settings(stage: int, **more: Any) -> dict[str, Any]:
    zero = {"stage": stage, **more.pop("zero", {})}
    automatic = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        **dict.fromkeys(automatic, "auto"),
        **more,
    }


def ds(name: str, stage: int, sam: dict[str, Any] | None, config: dict[str, Any] | None = None, **more: Any) -> Job:
    arguments = {**TWICE, "use_cpu": False, "deepspeed": settings(stage, **(config or {})), **more.pop("arguments", {})}
    return Job(name, engine="deepspeed", sam=sam, arguments=arguments, **more)


def ddp(name: str, sam: dict[str, Any] | None, **more: Any) -> Job:
    return Job(name, sam=sam, arguments={**TWICE, **more.pop("arguments", {})}, **more)


# --- rho = 0: what to train, at which stage; twice each, plain and with SAM
BF16 = {"bf16": {"enabled": True}}
IN_FP32 = {**BF16, "data_types": {"grad_accum_dtype": "fp32"}}
PLAIN: dict[str, tuple[int, dict[str, Any]]] = {
    **{f"stage {stage}": (stage, {"arguments": ADAM}) for stage in STAGES},
    **{f"stage {stage}, bf16": (stage, {"config": BF16, "arguments": {**ADAM, "bf16": True}}) for stage in STAGES},
    "stage 2, bf16 added in fp32": (2, {"config": IN_FP32, "arguments": {**ADAM, "bf16": True}}),
    "stage 2, resnet": (2, {"family": "resnet", "arguments": ADAM}),
    "stage 1, auto_find interrupted": (1, {"arguments": {**ADAM, **FIND}}),
    "stage 2, auto_find interrupted": (2, {"arguments": {**ADAM, **FIND}}),
}
PAIRS = [
    job
    for name, (stage, more) in PLAIN.items()
    for job in (ds(f"{name} plain", stage, None, **more), ds(f"{name} rho 0", stage, RHO_0, **more))
]

# --- rho > 0: DDP, and what has to be close to it
LORA = {"prepare": ["without_dropout", "with_lora"], "arguments": {"learning_rate": 1.0}}
UNUSED = {"prepare": ["with_unused_layer"]}
EXPECTED = [
    ddp("plain", None),
    ddp("sam", SAM),
    ddp("asam", ASAM),
    ddp("mixing", MIXING),
    ddp("lora", SAM, **LORA),
    ddp("unused", SAM, prepare=["with_unused_layer"], arguments={"ddp_find_unused_parameters": True}),
]
AS_DDP = {
    **{f"sam {stage}": ("sam", ds(f"sam {stage}", stage, SAM)) for stage in STAGES},
    **{f"asam {stage}": ("asam", ds(f"asam {stage}", stage, ASAM)) for stage in STAGES},
    **{f"mixing {stage}": ("mixing", ds(f"mixing {stage}", stage, MIXING)) for stage in STAGES},
    **{f"lora {stage}": ("lora", ds(f"lora {stage}", stage, SAM, **LORA)) for stage in STAGES},
    **{f"unused {stage}": ("unused", ds(f"unused {stage}", stage, SAM, **UNUSED)) for stage in STAGES},
    "checkpointing 2": ("sam", ds("checkpointing 2", 2, SAM, arguments=CHECKPOINTING)),
    "checkpointed lora 2": (
        "lora",
        ds("checkpointed lora 2", 2, SAM, **{**LORA, "arguments": {**LORA["arguments"], **CHECKPOINTING}}),
    ),
    "small buckets 2": ("sam", ds("small buckets 2", 2, SAM, {"zero": {"reduce_bucket_size": 500}})),
    "not contiguous 1": ("sam", ds("not contiguous 1", 1, SAM, {"zero": {"contiguous_gradients": False}})),
}

# Every kind at one stage at least, and every stage with several kinds, on each commit; these are the rest.
REST = {"stage 0, bf16", "stage 1, bf16", "asam 1", "asam 2", "mixing 0", "lora 0", "lora 1", "unused 0", "unused 2"}
REST |= {f"{name} {run}" for name in REST & set(PLAIN) for run in ("plain", "rho 0")}

# --- resume, exceptions, refusals
SAVING = {**ADAM, "save_strategy": "steps", "save_steps": 2}
WHOLE = [
    *(ds(f"whole {stage}", stage, REMEMBERING, arguments=SAVING) for stage in (1, 2)),
    ds("whole 2, bf16", 2, REMEMBERING, BF16, arguments={**SAVING, "bf16": True}),
]
RESUMED = [replace(job, name=f"resumed {job.name}", resume=f"{job.name}/checkpoint-4") for job in WHOLE]
LEFT = [ds(f"interrupted {stage}", stage, SAM, arguments=ADAM) for stage in STAGES]
OFFLOAD = {"zero": {"offload_optimizer": {"device": "cpu"}}}
REFUSED = {
    "device": (ds("device", 2, {"rho": 0.1, "sam_scope": "device"}), "Use sam_scope='batch'"),
    "micro": (ds("micro", 1, {"rho": 0.1, "sam_scope": "micro_batch"}), "Use sam_scope='batch'"),
    "stage 3": (ds("stage 3", 3, SAM), "stage 3 spreads every weight"),
    "offload": (ds("offload", 2, SAM, OFFLOAD), "offload_optimizer"),
    "offload 1": (ds("offload 1", 1, SAM, OFFLOAD), "offload_optimizer"),
    "round robin": (ds("round robin", 2, SAM, {"zero": {"round_robin_gradients": True}}), "round_robin_gradients"),
    "bf16 in fp32": (ds("bf16 in fp32", 1, SAM, IN_FP32, arguments={"bf16": True}), "Use ZeRO stage 2"),
    "given an engine": (Job("given an engine"), "The model is a DeepSpeedEngine"),
    "loaded in parts": (Job("loaded in parts"), "stage 3 spreads every weight"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def found(folder: Path, request: pytest.FixtureRequest) -> Results:
    jobs = [*EXPECTED, *PAIRS, *(job for _, job in AS_DDP.values()), *WHOLE, *RESUMED, *LEFT]
    jobs += [job for job, _ in REFUSED.values()]
    jobs = [job for job in jobs if job.name not in REST or runs_everything(request)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        return run_jobs(folder, 2, jobs, worker="tests.distributed.deepspeed_worker")


def without(result: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k not in names}


@pytest.mark.parametrize("name", marked(PLAIN, REST))
def test_with_rho_0_the_run_is_the_plain_trainers(name: str, found: Results) -> None:
    for plain, sharp in zip(found[f"{name} plain"], found[f"{name} rho 0"], strict=True):
        assert differences(without(plain, "history"), without(sharp, "history")) == []
        assert (sharp["engine"], sharp["world"], sharp["stage"]) == ("DEEPSPEED", 2, PLAIN[name][0])
        assert sharp["dtype"] == ("torch.bfloat16" if "bf16" in name else "torch.float32")
        assert sum(bool(entry.get("sam/perturbed")) for entry in sharp["history"]) == sharp["steps"] > 1
        assert len(set(plain["after_steps"])) == len(plain["after_steps"])  # it did train


@pytest.mark.parametrize("name", marked(AS_DDP, REST))
def test_the_run_is_ddps(name: str, found: Results) -> None:
    same = AS_DDP[name][0]
    for expected, result in zip(found[same], found[name], strict=True):
        assert (result["engine"], expected["engine"], result["steps"]) == ("DEEPSPEED", "MULTI_CPU", expected["steps"])
        assert distance(result, expected) <= CLOSE * max(1.0, weights(expected).abs().max().item())
        for other in {"plain", "sam", "asam", "mixing"} - {same} if same not in ("lora", "unused") else ():
            assert distance(result, found[other][0]) > 1e-3  # the line above could fail


@pytest.mark.parametrize("name", marked(AS_DDP, REST))
def test_every_process_logs_what_ddps_do(name: str, found: Results) -> None:
    keys = ["loss", "sam/sharpness", "sam/epsilon_norm", "sam/grad_cosine", "sam/skipped"]
    keys += [] if found[name][0]["stage"] == 0 else ["grad_norm"]  # which DeepSpeed does not tell at stage 0
    for expected, result in zip(found[AS_DDP[name][0]], found[name], strict=True):
        for entry, other in zip(result["history"][:-1], expected["history"][:-1], strict=True):
            for key in keys:
                assert (entry.get(key), key) == (pytest.approx(other.get(key), rel=1e-3, abs=1e-5), key)


@pytest.mark.parametrize(
    "name", marked([*AS_DDP, *(f"{name} rho 0" for name in PLAIN), *(job.name for job in WHOLE)], REST)
)
def test_processes_have_the_same_bits_after_every_step(name: str, found: Results) -> None:
    first, second = found[name]
    assert len(first["after_steps"]) >= first["steps"]
    assert first["after_steps"] == second["after_steps"]


@pytest.mark.parametrize("job", WHOLE, ids=lambda job: job.name)
def test_a_resumed_run_has_the_bits_of_the_whole_one(job: Job, found: Results, folder: Path) -> None:
    for whole, again in zip(found[job.name], found[f"resumed {job.name}"], strict=True):
        names = ("history", "logs", "after_steps", "engine steps")
        assert differences(without(whole, *names), without(again, *names)) == []
        assert again["after_steps"] == whole["after_steps"][4:]
        assert len(again["after_steps"]) == 2
    files = {path.name for path in (folder / job.name / "checkpoint-4").glob("sam_state*")}
    assert files == {"sam_state.json", "sam_state.safetensors"}


@pytest.mark.parametrize("job", LEFT, ids=lambda job: job.name)
def test_what_raises_in_the_descent_pass_leaves_the_weights_of_the_last_step(job: Job, found: Results) -> None:
    for result in found[job.name]:
        *_, last, left = result["after_steps"]
        assert last == left
        assert len(set(result["after_steps"])) == 2
        assert (result["calls"], result["engine steps"], result["steps"]) == (2, 2, 2)
        assert result["wrapper"] == "DeepSpeedEngineWrapper"


@pytest.mark.parametrize("name", REFUSED)
def test_what_two_passes_would_get_wrong_is_refused(name: str, found: Results, folder: Path) -> None:
    message = found.error(name)
    assert message.startswith("NotImplementedError: ")
    assert REFUSED[name][1] in message
    assert (folder / name).exists() == (name in ("device", "micro"))


WITHOUT = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name == "deepspeed" else find(name, *args)
sys.modules["deepspeed"] = None
import hf_sam
"""


def test_hf_sam_can_be_imported_where_deepspeed_is_not_installed() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
