# SPDX-License-Identifier: Apache-2.0
"""Train a tiny model with DeepSpeed on this process, or with DDP to compare with; run by torchrun like `worker`."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.integrations import HfDeepSpeedConfig

from hf_sam import SAM, VARIANTS
from tests.distributed import deepspeed_on_cpu, worker
from tests.distributed.worker import Job, Observer
from tests.promises.resumable import Remembering
from tests.promises.runs import fingerprint


class GradientMixing(SAM):
    """A direction that mixes the two gradients: what it makes of them has to be written where DeepSpeed keeps them."""

    combines = True

    def combine(self, clean: list[Tensor], perturbed: list[Tensor]) -> list[Tensor]:
        return [2 * g - h for g, h in zip(clean, perturbed, strict=True)]


VARIANTS["mixing"], VARIANTS["remembering"] = GradientMixing, Remembering


class Interrupted:
    """A Trainer whose loss raises once, at the second micro-batch of the last pass of the third step."""

    calls = 0
    carried = ("calls",)

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, *args, **kwargs)
        if self.state.global_step == 2 and getattr(self, "in_descent_pass", True):
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("CUDA out of memory.")  # what auto_find_batch_size acts on
        return loss


def found_by(trainer: Trainer, observer: Observer) -> dict[str, Any]:
    engine = trainer.model_wrapped if isinstance(trainer.model_wrapped, deepspeed.DeepSpeedEngine) else None
    if engine is not None:
        trainer.optimizer = engine.basic_optimizer  # DeepSpeed's has a state of another form
    return {
        **{k: v.clone() if isinstance(v, Tensor) else v for k, v in fingerprint(trainer).items()},
        "steps": trainer.state.global_step,
        "engine steps": engine and engine.global_steps,
        "stage": engine and engine.zero_optimization_stage(),
        "dtype": str(next(trainer.model_wrapped.parameters()).dtype),
        "after_steps": observer.weights,
        "history": trainer.state.log_history,
        "engine": trainer.accelerator.distributed_type.value,
        "world": trainer.args.world_size,
    }


def interrupted(trainer: Trainer, observer: Observer) -> dict[str, Any]:
    """Train until the loss raises, and tell what is left."""
    with suppress(RuntimeError):
        trainer.train()
    observer.on_step_end(None, None, None, trainer.model)
    wrapper = trainer.accelerator.deepspeed_engine_wrapped
    return {**found_by(trainer, observer), "calls": trainer.calls, "wrapper": type(wrapper).__name__}


def given_an_engine(job: Job, folder: Path) -> Trainer:
    """Give the trainer a model that DeepSpeed has wrapped already."""
    make_model = worker.make_model

    def wrapped(*args: Any) -> Any:
        model = make_model(*args)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return deepspeed.initialize(model=model, optimizer=optimizer, config={"train_micro_batch_size_per_gpu": 4})[0]

    worker.make_model = wrapped
    try:
        return worker.trainer_of(job, folder)
    finally:
        worker.make_model = make_model


def loaded_in_parts(job: Job, folder: Path) -> Trainer:
    """Load a model while an HfDeepSpeedConfig for stage 3 lives, beside arguments that know nothing of DeepSpeed."""
    make_model = worker.make_model

    def partitioned(*args: Any) -> Any:
        model = make_model(*args)
        saved = folder / f"{job.name}-start"
        model.save_pretrained(saved)  # on the first process
        torch.distributed.barrier()
        settings = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 4}
        keep = HfDeepSpeedConfig(settings)
        try:
            return type(model).from_pretrained(saved)
        finally:
            del keep

    worker.make_model = partitioned
    try:
        return worker.trainer_of(job, folder)
    finally:
        worker.make_model = make_model


MAKERS = {"given an engine": given_an_engine, "loaded in parts": loaded_in_parts}


def run(job: Job, folder: Path) -> dict[str, Any]:
    trainer, observer = MAKERS.get(job.name, worker.trainer_of)(job, folder), Observer()
    trainer.add_callback(observer)
    if "interrupted" in job.name:
        trainer.__class__ = type("InterruptedTrainer", (Interrupted, type(trainer)), {})
        if not job.arguments.get("auto_find_batch_size"):
            return interrupted(trainer, observer)
    trainer.train(resume_from_checkpoint=str(folder / job.resume) if job.resume else None)
    return found_by(trainer, observer)


if __name__ == "__main__":
    deepspeed_on_cpu.enable()
    worker.run = run
    worker.main(Path(sys.argv[1]), Path(sys.argv[2]))
