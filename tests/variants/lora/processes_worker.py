# SPDX-License-Identifier: Apache-2.0
"""The regularisers of LoRA in a loop written by hand. Run by torchrun with a folder for results, and an engine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from hf_sam.step_context import StepContext
from hf_sam.variants.base import Regulariser
from hf_sam.variants.lora.bar import NBAR, OBAR
from hf_sam.variants.lora.bi_lora import BiLoRA
from tests.variants.lora.adapted import adapted, factors, layer, trained_tensors

STEPS, LR, STRENGTH = 6, 0.1, 0.5


def sharded(model: Any) -> nn.Module:
    """Shard all parameters but one factor, so that a pair has one on every process and one in parts."""
    whole = {factors(model, "second")[1]}
    fully_shard(layer(model, "first"))
    return fully_shard(model, ignored_params=whole)


ENGINES: dict[str, Callable[[Any], nn.Module]] = {
    "one": lambda model: model,
    "ddp": DistributedDataParallel,
    "fsdp2": sharded,
}


def train(engine: str, kind: type[Regulariser], rank: int, processes: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model, variant = adapted(r=3), kind()
    variant.prepare_model(model)  # before it is wrapped, as a Trainer does
    wrapped = ENGINES[engine](model)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=LR)
    for step in range(STEPS):
        x = torch.randn(8, 5, generator=generator, dtype=torch.float64).chunk(processes)[rank]
        y = torch.randint(3, (8,), generator=generator).chunk(processes)[rank]
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x), y).backward()
        if engine == "fsdp2":
            gradient = factors(model, "second")[1].grad
            dist.all_reduce(gradient.div_(processes))
        variant.adjust_(STRENGTH, StepContext(step=step, steps=STEPS, lr=LR))
        optimizer.step()
    return [getattr(t.detach(), "full_tensor", t.detach)() for t in trained_tensors(model).values()]


def main(folder: Path, engine: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    found = {}
    for kind in (NBAR, OBAR, BiLoRA):
        found[f"one {kind.title}"] = train("one", kind, 0, 1)
        found[f"{engine} {kind.title}"] = train(engine, kind, rank, processes)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
