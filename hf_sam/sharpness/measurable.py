# SPDX-License-Identifier: Apache-2.0
"""Which models can be measured, and what is said of the others."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import nn

from hf_sam.parameters.unwrap import unwrapped
from hf_sam.step.replay import devices_of

DTYPES = {"float32": torch.float32, "float64": torch.float64, "as loaded": None}
"""What weights can be measured in."""


def bare(model: nn.Module, owner: str = "SharpnessAnalyzer") -> nn.Module:
    """Return the model without its wrappers, if its parameters can be measured.

    Args:
        model: in any wrapper.
        owner: whose argument it is, for messages.

    Raises:
        NotImplementedError: if its parameters are cut over processes, on several devices or not in memory, or if its
            attention can be differentiated once only.
    """
    model = unwrapped(model)
    for name, p in model.named_parameters():
        if hasattr(p, "device_mesh") or hasattr(p, "_is_flat_param") or hasattr(p, "ds_id"):
            raise NotImplementedError(
                f"`{owner}(model, ...)` needs whole parameters, and {name} is cut over processes. Save a "
                "checkpoint and measure that; the examples can be split over processes."
            )
        if p.is_meta:
            raise NotImplementedError(
                f"`{owner}(model, ...)` needs its parameters in memory, and {name} is not there "
                "(device_map). Load the model whole, or onto one device."
            )
    _refuse_several_devices(model, owner)
    _refuse_flash_attention(model, owner)
    return model


def check_measurable(chosen: Mapping[str, nn.Parameter], dtype: str) -> None:
    """Refuse complex weights, and warn of 16 bits.

    Raises:
        NotImplementedError: naming the first complex weight.
    """
    for name, p in chosen.items():
        if p.is_complex():
            raise NotImplementedError(
                f"`SharpnessAnalyzer(model, ...)` measures real weights, and {name} is complex. Hold it as two real "
                "numbers (torch.view_as_real) in the model, or leave it out with `parameters=...`."
            )
    if dtype == "as loaded" and any(p.dtype in (torch.float16, torch.bfloat16) for p in chosen.values()):
        warnings.warn(
            "Second derivatives in 16 bits are wrong by some percent. dtype='float32' computes in 32 bits, "
            "whatever the weights are stored in.",
            stacklevel=3,
        )


def _refuse_several_devices(model: nn.Module, owner: str) -> None:
    places = {str(d) for d in (getattr(model, "hf_device_map", None) or {}).values()}
    places = places if len(places) > 1 else {str(d) for d in devices_of(model.parameters())}
    if len(places) > 1:
        raise NotImplementedError(
            f"`{owner}(model, ...)` needs a model on one device, and this one is on "
            f"{', '.join(sorted(places))} (device_map). Load it onto one, as with device_map={{'': 0}}."
        )


def _refuse_flash_attention(model: nn.Module, owner: str) -> None:
    for module in model.modules():
        attention = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if isinstance(attention, str) and "flash" in attention:
            raise NotImplementedError(
                f"`{owner}(model, ...)` differentiates twice in 32 bits, and {attention} can do neither. "
                "Load the model with attn_implementation='sdpa', or call model.set_attn_implementation('sdpa')."
            )
