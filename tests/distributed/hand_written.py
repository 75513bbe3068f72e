# SPDX-License-Identifier: Apache-2.0
"""A loop written by hand around `sharpness_aware_grad`. Run by torchrun with a folder for results, and engines.

In float64, so that the only difference between engines is the order of sums.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hf_sam import sharpness_aware_grad

STEPS = 4


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def sharded(net: nn.Sequential) -> nn.Module:
    fully_shard(net[0])
    fully_shard(net[2])
    return fully_shard(net)


ENGINES: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "one": lambda net: net,
    "ddp": DistributedDataParallel,
    "fsdp2": sharded,
}


def train(engine: str, variant: str, rank: int, processes: int) -> list[torch.Tensor]:
    net = ENGINES[engine](model())
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(STEPS, 8, 8, generator=generator, dtype=torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for batch in data:
        part = batch.chunk(processes)[rank]

        def closure(part: torch.Tensor = part) -> torch.Tensor:
            optimizer.zero_grad()
            loss = (net(part[:, :7]) - part[:, 7:]).square().mean()
            loss.backward()
            return loss

        sharpness_aware_grad(closure, net.named_parameters(), rho=0.5, variant=variant)
        optimizer.step()
    return [getattr(p.detach(), "full_tensor", p.detach)() for p in net.parameters()]


def main(folder: Path, engines: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    found = {}
    for variant in ("sam", "asam"):
        found[f"one {variant}"] = train("one", variant, 0, 1)
        for engine in engines:
            found[f"{engine} {variant}"] = train(engine, variant, rank, processes)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
