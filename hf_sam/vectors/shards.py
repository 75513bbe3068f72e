# SPDX-License-Identifier: Apache-2.0
"""Parameters spread over processes: the part on this process, and the number of copies of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


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

    def some(self, chosen: list[Tensor]) -> Shards:
        """Return some of these parameters as the same kind of list."""
        return Shards(chosen, self.copies)

    def weights(self) -> list[Tensor]:
        """Return the part of each parameter on this process, outside of autograd."""
        return [local_shard(p) for p in self]

    def gradients(self) -> list[Tensor]:
        """Return the part of each gradient on this process.

        Raises:
            NotImplementedError: for gradients that are placed otherwise than their parameters.
        """
        if any(is_dtensor(p.grad) and p.grad.placements != p.placements for p in self if p.grad is not None):  # type: ignore[attr-defined]
            raise NotImplementedError("Gradients placed otherwise than their parameters (tensor parallelism).")
        return self.local([p.grad for p in self if p.grad is not None])

    def local(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return the parts on this process of tensors that are placed as these parameters."""
        return [local_shard(t) for t in tensors]


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


def as_shards(params: list[Tensor], flat: Mapping[int, int] | None = None) -> list[Tensor]:
    """Return `params` as `Shards` if they are spread over processes, otherwise as they are.

    Args:
        params: the parameters of a training step.
        flat: by `id` of a parameter, the number of processes that hold the same elements, for parameters that do not
            show that they are spread (FSDP1's, see `hf_sam.engines.fsdp1`).

    Raises:
        NotImplementedError: for DTensors that hold partial sums.
    """
    flat = flat or {}
    if not flat and not any(is_dtensor(p) for p in params):
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
