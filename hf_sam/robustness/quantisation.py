# SPDX-License-Identifier: Apache-2.0
"""Weights in few bits: int8 as `torch.ao.quantization.quantize_dynamic` computes it, and rounding of the weights alone.

The numbers are rounded as integer kernels would round them and then computed with in floating point, so that they can
be measured on any device and with any version of torch.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from hf_sam.robustness.layers import Layer, layers_of, replace_weights

SMALLEST = torch.finfo(torch.float32).eps
"""Smallest step between two numbers: a row of zeros has none of its own. As torch's observers have it."""
ACTIVATION_LEVELS = 2**7 - 1
"""Steps of an activation: torch's kernels for x86 leave one of 8 bits unused, so that no sum overflows."""


def rounded(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """Return a matrix rounded to integers of so many bits times a step for each row, or for each group in a row.

    The steps are symmetric: the largest number of a row is 2^(bits - 1) - 1 of them, and zero stays zero.

    Args:
        weight: a row for each output.
        bits: 2 to 8.
        group: columns that share a step; the whole row without it. The last group may be smaller.

    Example:
        >>> rounded(torch.tensor([[7.0, 3.4, -1.0], [0.6, 0.0, 1.4]]), bits=4)
        tensor([[ 7.0000,  3.0000, -1.0000],
                [ 0.6000,  0.0000,  1.4000]])
    """
    rows, columns = weight.shape
    if group is not None and group < columns:
        padded = F.pad(weight, (0, -columns % group)).reshape(-1, group)
        return rounded(padded, bits).reshape(rows, -1)[:, :columns]
    most = 2 ** (bits - 1) - 1
    values = weight.float()
    step = (values.abs().amax(dim=1) / most).clamp(min=SMALLEST)
    zero = torch.zeros(len(step), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(values, step, zero, 0, -most - 1, most).to(weight.dtype)


def round_weights(model: nn.Module, bits: int, group: int | None = None) -> int:
    """Round the weights of all linear layers and convolutions; return how many numbers that are."""

    def change(layer: Layer) -> Tensor:
        return layer.from_rows(rounded(layer.rows(), bits, group))

    return replace_weights({layer.name: layer for layer in layers_of(model)}, change)


def quantise_dynamically(model: nn.Module) -> int:
    """Let linear layers compute in int8: weights with one step a layer, inputs with one step a batch.

    The layers are those that `quantize_dynamic` takes, and GPT-2's `Conv1D` as well: convolutions stay as they are.
    To be called inside `BorrowedModel.with_copies`, which takes it off again. Returns how many numbers are rounded.

    Raises:
        ValueError: if the model has no linear layer.
    """
    layers = {layer.name: layer for layer in layers_of(model) if type(layer.module) in (nn.Linear, Conv1D)}
    if not layers:
        raise ValueError(f"`quantised(dynamic=True)` rounds linear layers, and {type(model).__name__} has none.")
    count = replace_weights(layers, lambda layer: _in_int8(layer.weight.detach()))
    for layer in layers.values():
        layer.module.forward = functools.partial(_forward_in_int8, type(layer.module).forward, layer.module)
    return count


def _in_int8(weight: Tensor) -> Tensor:
    values = weight.float()
    step = (values.abs().max() / 127.5).clamp(min=SMALLEST)
    return ((values / step).round().clamp(-128, 127) * step).to(weight.dtype)


def _forward_in_int8(forward: Any, module: nn.Module, x: Tensor) -> Any:
    """Return the output for an input rounded to 7 bits between its smallest and its largest number, and zero."""
    values = x.float()
    low, high = values.amin().clamp(max=0), values.amax().clamp(min=0)
    step = ((high - low) / ACTIVATION_LEVELS).clamp(min=SMALLEST)
    zero = (-low / step).round().clamp(0, ACTIVATION_LEVELS)
    levels = ((values / step).round() + zero).clamp(0, ACTIVATION_LEVELS)
    return forward(module, ((levels - zero) * step).to(x.dtype))
