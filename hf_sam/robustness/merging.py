# SPDX-License-Identifier: Apache-2.0
"""Weights merged with those of other checkpoints of one origin: their mean, or task arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from hf_sam.parameters.unwrap import unwrapped
from hf_sam.step.replay import RandomState, devices_of

Checkpoint = nn.Module | str | Path | Mapping[str, Tensor]
"""A model, a checkpoint's folder or name, or its tensors by name."""


def tensors_of(checkpoint: Checkpoint, model: nn.Module, argument: str) -> dict[str, Tensor]:
    """Return the floating-point tensors of a checkpoint, under the names that `model` has for them.

    A folder is loaded as the class of `model`; what is not in it, such as the head of a model that was only
    pretrained, is left out.

    Raises:
        ValueError: if the folder holds another kind of model.
    """
    if isinstance(checkpoint, Mapping):
        found = dict(checkpoint)
    elif isinstance(checkpoint, nn.Module):
        found = unwrapped(checkpoint).state_dict()
    else:
        found = _loaded(checkpoint, model, argument)
    return {name: t.detach() for name, t in found.items() if isinstance(t, Tensor) and t.is_floating_point()}


def _loaded(path: str | Path, model: nn.Module, argument: str) -> dict[str, Tensor]:
    kind = type(model)
    if not hasattr(kind, "from_pretrained"):
        raise ValueError(f"`{argument}`: {kind.__name__} cannot be loaded from {str(path)!r}; give the model itself.")
    there, here = AutoConfig.from_pretrained(path).model_type, getattr(model.config, "model_type", None)
    if there != here:
        raise ValueError(f"`{argument}`: {str(path)!r} is a {there} model, and the one that is measured is {here}.")
    streams = RandomState(devices_of(model.parameters()))
    try:
        other, info = kind.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True)
    finally:
        streams.restore()  # a head that is not in the checkpoint is drawn
    drawn = {*info["missing_keys"], *(each[0] for each in info["mismatched_keys"])}
    return {name: tensor for name, tensor in other.state_dict().items() if name not in drawn}


def merge_weights(
    model: nn.Module, others: Sequence[Mapping[str, Tensor]], origin: Mapping[str, Tensor] | None, alpha: float | None
) -> int:
    """Merge the weights of a model with those of other checkpoints, and return how many numbers are merged.

    Without `alpha` they become the mean of all checkpoints (Wortsman et al. 2022); with it, the origin plus alpha times
    the sum of every checkpoint's distance from it (Ilharco et al. 2023, task addition). A tensor that is not
    everywhere, in the same shape, stays the model's own: heads for other labels do. Statistics of batch normalisation
    are merged like weights. To be called inside `BorrowedModel.with_copies`, which puts every weight back.

    Args:
        model: with copies of its weights.
        others: the other checkpoints.
        origin: what all were trained from.
        alpha: the factor of the distances.

    Raises:
        ValueError: if less than half of the weights can be merged: these are no checkpoints of one origin.
    """
    everywhere = [*others, *([origin] if origin is not None else [])]
    merged = size = 0
    for name, tensor in _own_tensors(model).items():
        size += tensor.numel()
        if not all(name in other and other[name].shape == tensor.shape for other in everywhere):
            continue
        values = [tensor.detach(), *(other[name].to(tensor) for other in others)]
        start = origin[name].to(tensor) if origin is not None else None
        _set(model, name, _mean(values) if alpha is None else _sum(values, start, alpha))
        merged += tensor.numel()
    if merged < size / 2:
        raise ValueError(
            f"`merged(others)` needs checkpoints of one origin: {merged:,} of the {size:,} weights have the same name "
            "and shape in all of them."
        )
    return merged


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what a checkpoint of the model holds, once each: its floating-point parameters and buffers."""
    stored, seen, found = model.state_dict(keep_vars=True), set(), {}
    for name, tensor in stored.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.double() for value in values]).mean(dim=0).to(values[0])


def _sum(values: Sequence[Tensor], start: Tensor | None, alpha: float) -> Tensor:
    origin = torch.zeros_like(values[0]).double() if start is None else start.double()
    return (origin + alpha * sum(value.double() - origin for value in values)).to(values[0])


def _set(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer, everywhere that the model holds it."""
    path, _, last = name.rpartition(".")
    old: Any = getattr(model.get_submodule(path), last)
    new = nn.Parameter(value, requires_grad=False) if isinstance(old, nn.Parameter) else value
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for own in [key for key, tensor in kind.items() if tensor is old]:
                setattr(module, own, new)
