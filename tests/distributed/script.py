# SPDX-License-Identifier: Apache-2.0
"""Run scripts/finetune.py on this process, several times with different arguments, and write down what it did.

A module for launchers: its arguments are a JSON file with the arguments of each run, by name, and a folder for the
results. "{rank}" in an argument stands for the number of the process.
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from hf_sam.cli import finetune
from hf_sam.cli.common.processes import part
from tests.distributed import fsdp_on_cpu
from tests.distributed.worker import forget_job, whole

built: list[Any] = []
make_trainer = finetune.make_trainer


def kept(*args: Any) -> Any:
    built.append(make_trainer(*args))
    return built[-1]


def run(argv: list[str], launched: dict[str, str]) -> dict[str, Any]:
    """Return the status, what was printed and, if it came so far, the trained weights."""
    forget_job()
    os.environ.update(launched)
    built.clear()
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = finetune.main(argv)
    found = {"status": status, "out": out.getvalue(), "err": err.getvalue()}
    if status == 0:
        (trainer,) = built
        params = dict(trainer.model.named_parameters())
        found.update({f"weight {name}": whole(p).clone() for name, p in params.items()})
        found.update(
            world=trainer.args.world_size,
            engine=trainer.accelerator.distributed_type.value,
            kinds=sorted({type(p.data).__name__ for p in params.values()}),
            steps=trainer.state.global_step,
        )
    return found


def main(runs: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    fsdp_on_cpu.enable()
    finetune.make_trainer = kept
    rank = os.environ.get("RANK", "0")
    launched = {k: v for k, v in os.environ.items() if k.startswith(("FSDP_", "ACCELERATE_"))}
    for name, argv in json.loads(runs.read_text()).items():
        found = run([argument.replace("{rank}", rank) for argument in argv], launched)
        torch.save(found, folder / f"{name}.{rank}.pt")
    part()
    # Everything is written. Threads of native libraries (Arrow, gloo) abort Python as it shuts down, now and then.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
