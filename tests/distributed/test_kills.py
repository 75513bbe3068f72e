# SPDX-License-Identifier: Apache-2.0
"""A process dies in the middle of a descent pass: does the launch end, and does the run go on with the same bits?"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from accelerate.utils import merge_fsdp_weights
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaForCausalLM

from tests import warm
from tests.distributed.launch import Results, run_jobs, torchrun
from tests.distributed.mortal import ERROR
from tests.distributed.worker import Job
from tests.models import llama
from tests.promises.resumable import complete_checkpoints
from tests.promises.runs import differences

pytestmark = pytest.mark.distributed

BOUND = 60  # seconds from a death to the end of the launch; a survivor by itself would wait for ddp_timeout, 120
STEPS = 12
COMMON = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 4,
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "save_strategy": "steps",
    "save_steps": 2,
}


def fsdp2(kind: str) -> dict[str, Any]:
    return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": f"{kind}_STATE_DICT"}}


RUNS = {
    "ddp batch": Job("ddp batch", sam={"rho": 0.2}, arguments=COMMON),
    "ddp device": Job("ddp device", sam={"rho": 0.5, "sam_variant": "asam", "sam_scope": "device"}, arguments=COMMON),
    "fsdp2 full": Job("fsdp2 full", engine="fsdp2", sam={"rho": 0.2}, arguments={**COMMON, **fsdp2("FULL")}),
    "fsdp2 sharded": Job("fsdp2 sharded", engine="fsdp2", sam={"rho": 0.2}, arguments={**COMMON, **fsdp2("SHARDED")}),
}


@dataclass(frozen=True)
class Death:
    """Of which processes of a run, and how: "kill" itself, "raise", or be killed "outside" after a while."""

    run: str
    ranks: tuple[int, ...]
    how: str = "kill"


DEATHS = {
    "one of ddp batch": Death("ddp batch", (1,)),
    "all of ddp batch": Death("ddp batch", (0, 1)),
    "one of ddp device": Death("ddp device", (0,)),
    "all of ddp device, from outside": Death("ddp device", (0, 1), "outside"),
    "one of fsdp2 full": Death("fsdp2 full", (0,)),
    "one of fsdp2 full, from outside": Death("fsdp2 full", (1,), "outside"),
    "all of fsdp2 sharded": Death("fsdp2 sharded", (0, 1)),
    "an error on one of ddp batch": Death("ddp batch", (1,), "raise"),
}
# By torchrun itself: what it does about a death is the same for all engines, and for an error.
LAUNCHED = ("one of ddp batch",)


@dataclass(frozen=True)
class Corpse:
    """What a death left behind."""

    code: int
    errors: str
    seconds: float
    alive: list[int]
    survived: list[str]
    checkpoint: Path


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def kill_from_outside(folder: Path, death: Death, delay: float) -> None:
    """Kill after the first complete checkpoint and a while longer."""
    deadline = time.monotonic() + 120
    while not complete_checkpoints(folder / death.run):
        assert time.monotonic() < deadline, "it never got to a checkpoint"
        time.sleep(0.01)
    time.sleep(delay)
    for rank in death.ranks:
        os.kill(int((folder / f"{rank}.pid").read_text()), signal.SIGKILL)


Wait = Callable[[], tuple[int, str]]


def launched(folder: Path) -> Wait:
    """Launch with torchrun; return how to wait for its status and for what it printed."""
    command = torchrun(2, "tests.distributed.mortal", folder / "job.json", folder)
    with (folder / "launch.log").open("w") as log:
        launch = subprocess.Popen(command, cwd=warm.ROOT, env=warm.environment(), stdout=log, stderr=log)
    return lambda: (launch.wait(timeout=BOUND + 60), (folder / "launch.log").read_text())


def started(folder: Path) -> Wait:
    """Start the processes that torchrun would launch, in a tenth of the time."""
    together, store = warm.start_together(2, "tests.distributed.mortal", folder / "job.json", folder, logs=folder)

    def wait(store: Any = store) -> tuple[int, str]:
        codes = warm.end_together(together, BOUND + 60)
        del store
        names = [signal.Signals(-code).name for code in codes if code < 0]
        return max(map(abs, codes)), " ".join([*names, *((folder / f"{rank}.log").read_text() for rank in (0, 1))])

    return wait


def end_of(name: str, folder: Path) -> Corpse:
    """Let a run die, and see what is left."""
    death, seeded = DEATHS[name], random.Random(name)
    folder.mkdir()
    step = -1 if death.how == "outside" else seeded.randrange(2, STEPS)
    fate = {"how": death.how, "ranks": death.ranks, "step": step}
    (folder / "job.json").write_text(json.dumps({"job": asdict(RUNS[death.run]), "fate": fate}))
    wait = (launched if name in LAUNCHED else started)(folder)
    if death.how == "outside":
        kill_from_outside(folder, death, seeded.uniform(0.0, 0.3))
        died = time.monotonic()
    code, errors = wait()
    if death.how != "outside":  # the last thing that was written before the death
        newest = max(path.stat().st_mtime for path in folder.rglob("*") if path.suffix != ".log")
        died = time.monotonic() - (time.time() - newest)
    return Corpse(
        code=code,
        errors=errors,
        seconds=time.monotonic() - died,
        alive=[pid for pid in (int(path.read_text()) for path in folder.glob("*.pid")) if is_alive(pid)],
        survived=[path.name for path in folder.glob("*.survived")],
        checkpoint=complete_checkpoints(folder / death.run)[-1],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Results:
    return run_jobs(folder / "whole", 2, list(RUNS.values()))


@pytest.fixture(scope="module")
def corpses(folder: Path) -> dict[str, Corpse]:
    return {name: end_of(name, folder / name) for name in DEATHS}


@pytest.fixture(scope="module")
def resumed(folder: Path, corpses: dict[str, Corpse]) -> Results:
    jobs = [
        replace(RUNS[DEATHS[name].run], name=name, resume=str(corpse.checkpoint)) for name, corpse in corpses.items()
    ]
    return run_jobs(folder / "resumed", 2, jobs)


def saved_step(corpse: Corpse) -> int:
    return int(corpse.checkpoint.name.split("-")[1])


@pytest.mark.parametrize("name", DEATHS)
def test_the_launch_fails_soon_and_nobody_is_left(name: str, corpses: dict[str, Corpse]) -> None:
    corpse = corpses[name]
    assert corpse.code not in (0, None)
    assert corpse.seconds < BOUND
    assert (corpse.alive, corpse.survived) == ([], [])
    reason = ERROR if DEATHS[name].how == "raise" else "SIGKILL"
    assert reason in corpse.errors


@pytest.mark.parametrize("name", DEATHS)
def test_the_last_checkpoint_is_intact(name: str, folder: Path, whole: Results, corpses: dict[str, Corpse]) -> None:
    corpse, run = corpses[name], DEATHS[name].run
    assert whole[run][0]["steps"] == STEPS > saved_step(corpse)
    expected = folder / "whole" / run / corpse.checkpoint.name
    assert files(corpse.checkpoint) == files(expected)
    logs = [json.loads((c / "trainer_state.json").read_text())["log_history"] for c in (corpse.checkpoint, expected)]
    assert logs[0] == logs[1]


def files(checkpoint: Path) -> dict[str, str]:
    """Return a digest of every file but those that name their folder."""
    paths = [p for p in checkpoint.rglob("*") if p.is_file()]
    named = ("trainer_state.json", "training_args.bin", ".metadata")
    return {
        str(path.relative_to(checkpoint)): "" if path.name in named else hashlib.sha1(path.read_bytes()).hexdigest()
        for path in paths
    }


@pytest.mark.parametrize("name", DEATHS)
def test_one_process_loads_unperturbed_weights(
    name: str, whole: Results, corpses: dict[str, Corpse], tmp_path: Path
) -> None:
    corpse, run = corpses[name], DEATHS[name].run
    if "sharded" in run:
        merge_fsdp_weights(str(corpse.checkpoint / "pytorch_model_fsdp_0"), str(tmp_path))
        model = llama()
        left_out = model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
        assert left_out.missing_keys in ([], ["lm_head.weight"])  # tied to the embeddings
    else:
        model = LlamaForCausalLM.from_pretrained(corpse.checkpoint)
    assert digest(model) == whole[run][0]["after_steps"][saved_step(corpse) - 1]


def digest(model: nn.Module) -> str:
    values = b"".join(p.detach().float().numpy().tobytes() for p in model.parameters())
    return hashlib.sha1(values).hexdigest()


@pytest.mark.parametrize("name", DEATHS)
def test_resuming_gives_the_bits_of_the_uninterrupted_run(name: str, whole: Results, resumed: Results) -> None:
    clocks = ("history", "logs", "after_steps", "collectives")
    run = DEATHS[name].run
    assert all(result["world"] == 2 for result in whole[run])
    for uninterrupted, again in zip(whole[run], resumed[name], strict=True):
        left, right = ({k: v for k, v in r.items() if k not in clocks} for r in (uninterrupted, again))
        assert differences(left, right) == []
        assert again["after_steps"] == uninterrupted["after_steps"][-len(again["after_steps"]) :]
        assert 0 < len(again["after_steps"]) < STEPS
