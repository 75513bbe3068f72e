# SPDX-License-Identifier: Apache-2.0
"""Parameters spread over processes: the part on this process, and the number of copies of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Shards(list[Tensor]):
    """A list of parameters of which this process holds a part, with the number of copies of each part.

    A sum over all elements is a sum over the processes: each adds up the elements that it holds, divided by the number
    of processes that hold the same elements. So one reduction serves parameters on several meshes together with
    replicated ones (adapters on a sharded base).

    Attributes:
        copies: by `id` of a parameter, the number of processes that hold the same elements.
    """

    def __init__(self, params: Iterable[Tensor], copies: dict[int, int]) -> None:
        super().__init__(params)
        self.copies = copies


def same_kind(params: list[Tensor], chosen: list[Tensor]) -> list[Tensor]:
    """Return `chosen`, some of `params`, as the kind of list that `params` is."""
    return Shards(chosen, params.copies) if isinstance(params, Shards) else chosen


def local_shard(tensor: Tensor) -> Tensor:
    """Return the part of `tensor` that is on this process: a plain tensor in the same memory, outside autograd."""
    if not is_dtensor(tensor):
        return tensor.detach()
    part: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return part


def is_dtensor(tensor: Tensor) -> bool:
    """Return whether `tensor` is one part of a tensor spread over a device mesh."""
    # Looked up, not imported: the import is slow, and without it there can be no DTensor.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def as_shards(params: list[Tensor], model: nn.Module | None = None) -> list[Tensor]:
    """Return `params` as `Shards` if they are spread over processes, otherwise as they are.

    Args:
        params: the parameters of a training step.
        model: needed to recognise FullyShardedDataParallel (FSDP1), whose parameters look like any others.

    Raises:
        NotImplementedError: for DTensors that hold partial sums.
    """
    flat = _flat_copies(model) if model is not None else {}
    if not any(is_dtensor(p) for p in params) and not flat:
        return params
    return Shards(params, {id(p): flat.get(id(p)) or _copies(p) for p in params})


def _copies(param: Tensor) -> int:
    """Return how many processes hold the same part of `param` as this one."""
    processes = torch.distributed.get_world_size()
    if not is_dtensor(param):
        return processes
    tensor: Any = param
    for placement, size in zip(tensor.placements, tensor.device_mesh.shape, strict=True):
        if placement.is_partial():
            raise NotImplementedError(f"A parameter placed as {placement} on its device mesh cannot be perturbed.")
        if not placement.is_replicate():  # Shard, or the strided shard of FSDP on top of tensor parallelism
            processes //= size
    return processes


def fsdp1_modules(model: nn.Module) -> list[Any]:
    """Return the FullyShardedDataParallel (FSDP1) modules of `model`."""
    fsdp = sys.modules.get("torch.distributed.fsdp.fully_sharded_data_parallel")
    return [m for m in model.modules() if isinstance(m, fsdp.FullyShardedDataParallel)] if fsdp else []


def _flat_copies(model: nn.Module) -> dict[int, int]:
    """Return the copies of the parameters that FSDP1 keeps in flat parameters."""
    copies = {}
    for module in fsdp1_modules(model):
        handle = module._handle
        if handle is None:
            continue
        shards = handle.process_group.size() if handle.uses_sharded_strategy else 1
        flat = handle.flat_param
        for param in (flat, *(getattr(flat, "_params", None) or ())):
            copies[id(param)] = torch.distributed.get_world_size() // shards
    return copies
