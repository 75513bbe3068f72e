# SPDX-License-Identifier: Apache-2.0
"""A few steps of every variant on parameters spread over processes. Run by torchrun with a folder for results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from hf_sam import Variant
from hf_sam.step.gradient_mixing import mix_, renormalise_
from hf_sam.variants import make_variant
from hf_sam.vectors.shards import as_shards, local_shard
from hf_sam.vectors.vectors import global_norm
from tests.compare import bits, relative_error, same_bits
from tests.variants.problems import CASES, RHO

# On three processes: an empty shard, an uneven one, another dimension, a replicated DTensor, and a plain tensor.
PLACEMENTS: dict[str, Any] = {
    "layer.weight": ((2, 4), Shard(0)),
    "layer.bias": ((7,), Shard(0)),
    "other.weight": ((2, 6), Shard(1)),
    "norm.weight": ((4,), Replicate()),
    "scalar": ((), None),
}


def spread(whole: Tensor, mesh: DeviceMesh, placement: Any) -> Tensor:
    return whole.clone() if placement is None else distribute_tensor(whole.clone(), mesh, [placement])


def vectors(count: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(5)
    shapes = [shape for shape, _ in PLACEMENTS.values()]
    return [[torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes] for _ in range(count)]


def prepared(variant: Variant, params: list[Tensor]) -> Variant:
    variant.prepare(zip(PLACEMENTS, params, strict=True))
    return variant


def act(variant: Variant, params: list[Tensor], parts: list[list[Tensor]]) -> list[Tensor]:
    """Climb twice, combine, and use what was kept; return all that comes out. The gradients get copied."""
    found = []
    for g, h in zip(parts[0:2], parts[2:4], strict=True):
        found += variant.ascend(params, [x.clone() for x in g], RHO).epsilon
        found += variant.combine([x.clone() for x in g], [x.clone() for x in h])
    between = [x.clone() for x in parts[4]]
    variant.reuse_(params, between)
    mixed = [x.clone() for x in parts[2]]
    mix_(mixed, parts[0], 3.0)
    renormalise_(mixed, global_norm(parts[0], params), params)
    return [*found, *between, *mixed]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    weights, *gradients = vectors(6)
    placements = [placement for _, placement in PLACEMENTS.values()]

    def shares(whole: list[Tensor]) -> list[Tensor]:
        return [local_shard(spread(x, mesh, placement)) for x, placement in zip(whole, placements, strict=True)]

    found: dict[str, Any] = {}
    for name, options in CASES:
        params = as_shards([spread(w, mesh, placement) for w, placement in zip(weights, placements, strict=True)])
        whole = act(prepared(make_variant(name, options), weights), weights, gradients)
        variant = prepared(make_variant(name, options), params)
        parts = act(variant, params, [shares(g) for g in gradients])
        expected = [x for i in range(0, len(whole), len(weights)) for x in shares(whole[i : i + len(weights)])]
        held_here = [(part, x) for part, x in zip(parts, expected, strict=True) if x.numel()]
        resumed = prepared(make_variant(name, options), params)
        resumed.load_state_dict({k: v.clone() for k, v in variant.state_dict().items()})
        again = [act(d, params, [shares(g) for g in gradients[::-1]]) for d in (variant, resumed)]
        found[f"{name} {options}"] = {
            "error": relative_error(*map(list, zip(*held_here, strict=True))),
            "resumes": same_bits(bits(again[0]), bits(again[1])),
            "empty": len(parts) - len(held_here),
        }
    torch.save(found, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
