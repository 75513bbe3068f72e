# SPDX-License-Identifier: Apache-2.0
"""Train a tiny model on this process and write down everything in which processes or runs could differ.

Run by torchrun with two arguments: a JSON file with a list of jobs, and the folder for their results. One launch does
many jobs: starting Python takes longer than training these models. A job is a mapping: see `Job`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as fsdp1
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.radius import auto
from hf_sam.radius.memorisation import Memorisation
from hf_sam.trainer import ascent_pass
from tests.distributed import fsdp_on_cpu
from tests.distributed.models import make_model
from tests.models import FAMILIES
from tests.promises import resumable  # noqa: F401 (registers the variant "remembering")
from tests.promises.runs import ForcedScaler, fingerprint


@dataclass
class Job:
    """One training run.

    Attributes:
        name: of its result files, `<name>.<rank>.pt`.
        family: of tests.models or tests.distributed.models.
        engine: "ddp", "fsdp1", "fsdp2" (accelerate's plugin), "native" (transformers' own sharding).
        sam: arguments of SAMConfig; None for the plain Trainer.
        prepare: names of functions in tests.distributed.models that change the model.
        arguments: of TrainingArguments.
        scaler: initial loss scale of a forced GradScaler; None without one.
        options: for the engine.
        resume: folder of a checkpoint to go on from, inside the folder for results.
        bad: what `Spoiled` or `Uneven` does, None for nothing.
        order: of the examples, which are then not shuffled; None for the Trainer's order.
        examples: how many of them.
        counted: whether to count the collectives.
    """

    name: str
    family: str = "llama"
    engine: str = "ddp"
    sam: dict[str, Any] | None = field(default_factory=lambda: {"rho": 0.1})
    prepare: list[str] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)
    scaler: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    resume: str | None = None
    bad: dict[str, Any] | None = None
    order: list[int] | None = None
    examples: int = 24  # whole batches for one process and for two
    counted: bool = False


class Observer(TrainerCallback):
    """Keeps a hash of the weights after every step, to compare between processes."""

    def __init__(self) -> None:
        self.weights: list[str] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        del args, state, control, kwargs
        with unflattened(model):
            values = b"".join(whole(p).clone().float().numpy().tobytes() for p in model.parameters())
        self.weights.append(hashlib.sha1(values).hexdigest())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor of which a process may hold a part."""
    full = getattr(tensor.detach(), "full_tensor", None)
    return full() if full is not None else tensor.detach()


def unflattened(model: nn.Module) -> Any:
    """Let FSDP1 put its parameters together, inside."""
    return fsdp1.summon_full_params(model) if isinstance(model, fsdp1) else nullcontext()


class Spoiled:
    """A Trainer whose loss is multiplied at one step, in one pass, on one process; or that runs out of memory."""

    bad: dict[str, Any]

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, *args, **kwargs)
        if "largest" in self.bad:  # the batch that fits, except that only the second pass notices
            if getattr(self, "in_descent_pass", False) and self._train_batch_size > self.bad["largest"]:
                raise RuntimeError("CUDA out of memory.")
            return loss
        in_pass = "descent" if getattr(self, "in_descent_pass", False) else "ascent"
        here = self.state.global_step == self.bad["step"] and dist.get_rank() in self.bad["ranks"]
        return loss * float(self.bad["factor"]) if here and in_pass in self.bad["passes"] else loss


class Uneven:
    """A Trainer whose second process computes other norms of the gradient, as another kind of device may."""

    bad: dict[str, Any]

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        norm = ascent_pass.global_norm

        def uneven(*args: Any) -> torch.Tensor:
            return norm(*args) * (1 + dist.get_rank() * self.bad["uneven"] * (self.state.global_step % 2))

        with mock.patch.object(ascent_pass, "global_norm", uneven):
            return super().training_step(*args, **kwargs)


class InOrder:
    """A Trainer that does not shuffle."""

    def _get_train_sampler(self, *args: Any) -> Any:
        del args
        return SequentialSampler(self.train_dataset)


def forget_job() -> None:
    """Put accelerate's process-wide state back to where the process group has just been made."""
    if PartialState._shared_state and dist.is_initialized():
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    AcceleratorState._reset_state(False)
    GradientState._reset_state()
    for name in [n for n in os.environ if n.startswith(("FSDP_", "ACCELERATE_"))]:
        del os.environ[name]


def trainer_class(job: Job) -> type:
    cls: type = Trainer if job.sam is None else SAMTrainer
    if job.scaler is not None:
        cls = type("Scaled", (ForcedScaler, cls), {"initial_scale": job.scaler})
    if job.bad is not None:
        cls = type("SpoiledTrainer", (Uneven if "uneven" in job.bad else Spoiled, cls), {"bad": job.bad})
    return cls if job.order is None else type("Ordered", (InOrder, cls), {})


def trainer_of(job: Job, folder: Path) -> Trainer:
    forget_job()
    settings = {
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "ddp_timeout": 120,
        **job.arguments,
    }
    args = TrainingArguments(str(folder / job.name), **settings)
    args.device  # noqa: B018 (starts the process group)
    model = make_model(job, folder)
    data = FAMILIES.get(job.family, FAMILIES["llama"])[1](torch.Generator().manual_seed(1))[: job.examples]
    data = data if job.order is None else [data[i] for i in job.order]
    extra = {} if job.sam is None else {"sam_config": SAMConfig(**job.sam)}
    set_seed(args.seed)
    return trainer_class(job)(model, args, train_dataset=data, eval_dataset=data[:4], **extra)


def run(job: Job, folder: Path) -> dict[str, Any]:
    trainer = trainer_of(job, folder)
    observer = Observer()
    trainer.add_callback(observer)
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    with profile if job.counted else nullcontext():
        trainer.train(resume_from_checkpoint=str(folder / job.resume) if job.resume else None)
    with unflattened(trainer.model):
        found = {k: whole(v).clone() if isinstance(v, torch.Tensor) else v for k, v in fingerprint(trainer).items()}
    found.update(
        collectives={e.key: e.count for e in profile.key_averages() if e.key.startswith("c10d")}
        if job.counted
        else None,
        steps=trainer.state.global_step,
        after_steps=observer.weights,
        history=trainer.state.log_history,
        engine=trainer.accelerator.distributed_type.value,
        world=trainer.args.world_size,
    )
    return found


def main(jobs: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    fsdp_on_cpu.enable()
    Memorisation.note = lambda self, passes: None  # rho="auto" waits for memorisation, and runs here are a few steps
    auto.BEGIN = 2.0
    rank = int(os.environ.get("RANK", "0"))
    for entry in json.loads(jobs.read_text()):
        job = Job(**entry)
        try:
            found = run(job, folder)
        except Exception as error:  # noqa: BLE001 (written down, and raised where the result is asked for)
            found = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        torch.save(found, folder / f"{job.name}.{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
