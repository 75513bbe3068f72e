# SPDX-License-Identifier: Apache-2.0
"""Is Flat-LoRA's noise distributed as the paper says, and the same wherever it must be?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_sam.step_context import StepContext
from hf_sam.variants.lora.flat_lora import FlatLoRA
from tests.compare import bits, same_bits
from tests.variants.lora.adapted import layer, peft

RHO = 0.3
LATE = StepContext(step=10, steps=10, seed=3)  # the noise is at its full strength
LARGE = ["linear", "transposed", "conv"]


def prepared(model: nn.Module) -> FlatLoRA:
    variant = FlatLoRA()
    variant.prepare_model(model)
    return variant


def noise(variant: FlatLoRA, context: StepContext = LATE) -> list[Tensor]:
    found = variant.direction_before_pass([], RHO, context)
    assert found is not None
    return found[1].epsilon


def base(model: Any, name: str) -> nn.Parameter:
    weight: nn.Parameter = layer(model, name).get_base_layer().weight
    return weight


class Large(nn.Module):
    """Layers large enough for statistics, one of them transposed as in GPT-2, one a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(600, 200)
        self.transposed = Conv1D(150, 200)
        self.conv = nn.Conv2d(40, 30, 3)


def rows_of(name: str, w: Tensor) -> Tensor:
    """Return one row for each output."""
    return w.T if name == "transposed" else w.flatten(1)


def large(**options: Any) -> Any:
    config = {"r": 4, "target_modules": LARGE, "init_lora_weights": False, "fan_in_fan_out": True, **options}
    net = Large()
    with torch.no_grad():
        for w in (net.linear.weight, net.transposed.weight.T, net.conv.weight):
            w.mul_(torch.linspace(0.1, 3.0, len(w)).view(-1, *[1] * (w.dim() - 1)))  # rows of many lengths
    return peft.get_peft_model(net, peft.LoraConfig(**config))


def merged_weights(model: Any) -> dict[str, Tensor]:
    """Return what peft itself makes of the weights when it merges."""
    weights = {name: base(model, name).detach().clone() for name in LARGE}
    return {name: w + layer(model, name).get_delta_weight("default").detach() for name, w in weights.items()}


def correlation(a: Tensor, b: Tensor) -> float:
    """Return the correlation in units of its standard deviation for independent numbers."""
    return (torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] * math.sqrt(a.numel())).item()


def standardised(model: Any, epsilon: list[Tensor]) -> dict[str, Tensor]:
    """Return the noise of each layer as it should be: standard normal."""
    found = {}
    for (name, w), e in zip(merged_weights(model).items(), epsilon, strict=True):
        rows = rows_of(name, w)
        deviation = RHO * rows.norm(dim=1, keepdim=True) / math.sqrt(rows.shape[1])
        found[name] = rows_of(name, e) / deviation
    return found


def test_the_variance_of_each_row_is_the_papers() -> None:
    model = large()
    for z in standardised(model, noise(prepared(model))).values():
        in_deviations = (z.square().mean(dim=1) - 1) / math.sqrt(2 / z.shape[1])  # of the variance of one row
        assert in_deviations.abs().max() < 5
        assert abs(in_deviations.mean()) < 5 / math.sqrt(len(z))
        assert abs(z.mean()) < 5 / math.sqrt(z.numel())
        assert abs(z.pow(4).mean() - 3) < 5 * math.sqrt(96 / z.numel())  # a normal distribution's kurtosis


def test_noise_is_independent_of_that_in_other_layers_and_steps() -> None:
    model = large()
    variant = prepared(model)
    now = standardised(model, noise(variant))
    later = standardised(model, noise(variant, context=LATE._replace(step=11, steps=11)))
    other_run = standardised(model, noise(variant, context=LATE._replace(seed=4)))
    for name in LARGE:
        assert abs(correlation(now[name], later[name])) < 5
        assert abs(correlation(now[name], other_run[name])) < 5
    size = min(z.numel() for z in now.values())
    assert abs(correlation(now["linear"].flatten()[:size], now["conv"].flatten()[:size])) < 5


def test_noise_is_the_same_for_all_micro_batches_of_a_step_and_after_a_resume_and_draws_from_no_stream_of_the_run() -> (
    None
):
    model = large()
    variant, streams = prepared(model), torch.get_rng_state()
    first = bits(noise(variant))
    assert same_bits(bits(noise(variant)), first)
    assert same_bits(bits(noise(prepared(model))), first)
    assert torch.equal(torch.get_rng_state(), streams)
    assert variant.state_dict() == {}


def test_autocast_around_it_changes_nothing() -> None:
    model = large()
    variant = prepared(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = bits(noise(variant))
    assert same_bits(bits(noise(variant)), inside)
