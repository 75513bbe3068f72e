# SPDX-License-Identifier: Apache-2.0
"""Train a tiny model and collect everything in which two runs could differ."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch
from accelerate.state import AcceleratorState
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments, set_seed

from hf_sam import SAMConfig, SAMSeq2SeqTrainer, SAMTrainer
from tests.models import build

CLOCK = ("runtime", "per_second")


class ForcedScaler:
    """A Trainer with the real GradScaler logic on a CPU, where accelerate only offers it for accelerators."""

    initial_scale = 2.0**16

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        AcceleratorState._shared_state["_mixed_precision"] = "fp16"
        self.accelerator.native_amp = True
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=self.initial_scale, growth_interval=3)


class PlainScaled(ForcedScaler, Trainer):
    pass


class SAMScaled(ForcedScaler, SAMTrainer):
    pass


def trainer_for(
    family: str,
    output_dir: Any,
    *,
    sam: SAMConfig | None,
    classes: tuple[type, type] | None = None,
    wrap_data: Any = list,
    prepare: Any = None,
    trainer_kwargs: dict[str, Any] | None = None,
    **arguments: Any,
) -> Trainer:
    """Return a trainer for `family`: plain when `sam` is None."""
    model, data = build(family)
    if prepare is not None:
        prepare(model)
    seq2seq = family == "t5"
    settings = {
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **arguments,
    }
    args = (Seq2SeqTrainingArguments if seq2seq else TrainingArguments)(str(output_dir), **settings)
    plain, sharp = classes or ((Seq2SeqTrainer, SAMSeq2SeqTrainer) if seq2seq else (Trainer, SAMTrainer))
    extra = {} if sam is None else {"sam_config": sam}
    set_seed(args.seed)
    cls = plain if sam is None else sharp
    return cls(model, args, train_dataset=wrap_data(data), **extra, **(trainer_kwargs or {}))


def fingerprint(trainer: Trainer) -> dict[str, Any]:
    """Return weights, buffers, optimizer and scheduler state, logs and random streams of a finished run."""
    # Copies: a model just loaded may lie in the memory of a file, which the next run's model overwrites.
    found: dict[str, Any] = {f"weight {n}": p.detach().clone() for n, p in trainer.model.named_parameters()}
    found.update({f"buffer {n}": b.clone() for n, b in trainer.model.named_buffers()})
    state = trainer.optimizer.state_dict()["state"]
    found.update({f"optimizer {i} {k}": v for i, entry in state.items() for k, v in entry.items()})
    found["scheduler"] = {k: v for k, v in trainer.lr_scheduler.state_dict().items() if k != "lr_lambdas"}
    found["logs"] = [
        {k: v for k, v in entry.items() if not k.startswith("sam/") and not any(c in k for c in CLOCK)}
        for entry in trainer.state.log_history
    ]
    found["streams"] = torch.get_rng_state()
    found["streams numpy"] = numpy.random.get_state()[1].tolist()
    found["streams python"] = random.getstate()
    scaler = getattr(trainer.accelerator, "scaler", None)
    found["scaler"] = scaler.state_dict() if scaler is not None else None
    return found


def differences(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Return the names under which two fingerprints are not the same, bit for bit."""
    names = [n for n in left if n not in right] + [n for n in right if n not in left]
    for name in left:
        a, b = left[name], right.get(name)
        # repr, because a logged nan is not equal to itself
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else repr(a) == repr(b)
        if not same:
            names.append(name)
    return names


def moved(trainer: Trainer, family: str) -> float:
    """Return the largest distance a trained weight has from its initial value, so that equality means something."""
    start, _ = build(family)
    pairs = zip(trainer.model.parameters(), start.parameters(), strict=True)
    return max((p.detach() - q.detach()).abs().max().item() for p, q in pairs)


def weights(trainer: Trainer) -> torch.Tensor:
    """Return all weights as one float64 vector."""
    return torch.cat([p.detach().double().flatten() for p in trainer.model.parameters()])
