# SPDX-License-Identifier: Apache-2.0
"""A training process that can be killed: run as a script by `test_resume.py`.

Arguments: output folder, "new" or "resume", variant, dataset form, and the optimizer step in whose descent pass the
process kills itself with SIGKILL (-1: never).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_sam import SAM, VARIANTS, SAMConfig, SAMTrainer
from hf_sam.vectors.vectors import Ascent
from tests.promises.runs import fingerprint, trainer_for


class Remembering(SAM):
    """A direction with a memory: climbs along a running mean of the gradients. For tests of the state's resume."""

    title = "Remembering"
    recovers_gradient = False

    def __init__(self) -> None:
        self.mean: list[torch.Tensor] | None = None
        self.steps = 0

    def ascend(self, params: list[torch.Tensor], grads: list[torch.Tensor], rho: float) -> Ascent:
        self.mean = [torch.zeros_like(g) for g in grads] if self.mean is None else self.mean
        torch._foreach_lerp_(self.mean, grads, 0.5)
        self.steps += 1
        return super().ascend(params, [m.clone() for m in self.mean], rho)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, **{f"mean.{i}": m for i, m in enumerate(self.mean or [])}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.mean = [state[f"mean.{i}"] for i in range(len(state) - 1)]


VARIANTS["remembering"] = Remembering


class Mortal(SAMTrainer):
    dies_at = -1

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, *args, **kwargs)
        if self.in_descent_pass and self.state.global_step == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints whose last file was written, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
    return sorted(found, key=lambda p: int(p.name.split("-")[1]))


def main(folder: Path, mode: str, variant: str, save_steps: int, dies_at: int) -> None:
    torch.set_num_threads(1)
    trainer = trainer_for(
        "llama",
        folder,
        sam=SAMConfig(rho=0.2, sam_variant=variant),
        classes=(SAMTrainer, type("Mortal", (Mortal,), {"dies_at": dies_at})),
        gradient_accumulation_steps=2,
        num_train_epochs=3,
        save_strategy="steps",
        save_steps=save_steps,
        lr_scheduler_type="cosine",
    )
    checkpoint = str(complete_checkpoints(folder)[-1]) if mode == "resume" else None
    trainer.train(resume_from_checkpoint=checkpoint)
    found = {k: v for k, v in fingerprint(trainer).items() if not k.startswith("logs")}
    torch.save(found, folder / "final.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
