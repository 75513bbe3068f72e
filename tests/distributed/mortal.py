# SPDX-License-Identifier: Apache-2.0
"""Train one job of the harness on this process, which may not live to see the end of it.

Run by torchrun with two arguments: a JSON file with the job and its fate, and the folder for the results. A fate says
how ("kill" or "raise"), on which ranks, at which step; the end comes in the descent pass, at the perturbed weights.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from tests.distributed import fsdp_on_cpu
from tests.distributed.worker import Job, trainer_of

ERROR = "this process has run out of luck"


class Mortal:
    """Put before a trainer's class."""

    fate: dict[str, Any]

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, *args, **kwargs)
        now = self.in_descent_pass and self.state.global_step == self.fate["step"]
        if now and dist.get_rank() in self.fate["ranks"]:
            if self.fate["how"] == "raise":
                raise RuntimeError(ERROR)
            os.kill(os.getpid(), signal.SIGKILL)
        return loss


def main(path: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    fsdp_on_cpu.enable()
    entry = json.loads(path.read_text())
    trainer = trainer_of(Job(**entry["job"]), folder)
    trainer.__class__ = type("MortalTrainer", (Mortal, type(trainer)), {"fate": entry["fate"]})
    (folder / f"{dist.get_rank()}.pid").write_text(str(os.getpid()))
    trainer.train()
    (folder / f"{dist.get_rank()}.survived").touch()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
