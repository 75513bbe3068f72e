# SPDX-License-Identifier: Apache-2.0
"""Which models are nBAR, oBAR and Flat-LoRA not for, and does the message say what to do instead?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hf_sam.step_context import StepContext
from hf_sam.variants.lora.bar import NBAR, OBAR
from hf_sam.variants.lora.flat_lora import FlatLoRA
from tests.looped import looped
from tests.variants.lora.adapted import Headed, Net, adapted, factors, layer, peft

MOMENT = StepContext(step=10, steps=10, lr=0.1)

NO_ADAPTERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no lora": (Headed, r'`sam_variant="nbar"` is for LoRA: .* this model has no LoRA layer\. Wrap it with'),
    "frozen": (lambda: adapted().requires_grad_(False), r"has none that is active and has both A and B trained"),
    "16 bits": (lambda: adapted(dtype=torch.bfloat16), r"torch\.bfloat16 rounds to 1\. Keep the adapters in float32"),
    "adalora": (
        lambda: peft.get_peft_model(
            Headed(), peft.AdaLoraConfig(init_r=2, target_r=1, total_step=9, target_modules=["first"])
        ),
        r"'base_model\.model\.first' is a SVDLinear, which has other factors\. Use `peft\.LoraConfig`",
    ),
}


@pytest.mark.parametrize("case", NO_ADAPTERS)
def test_a_model_it_is_not_for_is_refused_with_the_way_out(case: str) -> None:
    make, message = NO_ADAPTERS[case]
    with pytest.raises(ValueError, match=message):
        NBAR().prepare_model(make())


def test_merged_adapters_are_refused() -> None:
    model = adapted()
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"merged into its weight\. Call `model\.unmerge_adapter\(\)` first"):
        OBAR().prepare_model(model)


def test_shared_factors_are_refused() -> None:
    model = adapted(Headed(), target_modules=["second", "head"])
    shared = factors(model, "head")[0].detach()
    layer(model, "second").lora_B["default"].weight = nn.Parameter(shared.T[:, :2].contiguous())
    NBAR().prepare_model(model)
    layer(model, "second").lora_B["default"].weight = nn.Parameter(shared.T)
    with pytest.raises(ValueError, match=r"'base_model\.model\.head' shares its factors with another layer"):
        NBAR().prepare_model(model)


def test_a_step_without_any_gradient_is_an_error() -> None:
    variant = NBAR()
    variant.prepare_model(adapted())
    with pytest.raises(RuntimeError, match="no LoRA layer received gradients"):
        variant.adjust_(0.5, MOMENT)


def test_pieces_of_flattened_parameters_are_refused() -> None:
    model = adapted()
    variant = NBAR()
    variant.prepare_model(model)
    for t in factors(model, "first"):
        t.data = t.data.flatten()
        t.grad = torch.ones_like(t)
    with pytest.raises(NotImplementedError, match=r"\(FSDP1, ZeRO-3\)\. Use FSDP2"):
        variant.adjust_(0.5, MOMENT)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Embedding(4, 4)
        self.second = nn.Linear(4, 4)


class Params4bit(nn.Parameter):
    """As bitsandbytes calls its own, which says that it holds floating-point numbers while it is not yet packed."""


def quantised(make: Callable[[Tensor], nn.Parameter]) -> nn.Module:
    model = adapted()
    wrapped = layer(model, "first").get_base_layer()
    wrapped.weight = make(wrapped.weight.detach())
    return model


def grouped() -> nn.Module:
    net = nn.ModuleDict({"first": nn.Conv2d(4, 4, 1, groups=2), "second": nn.Linear(2, 2)})
    return peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["first"]))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no lora": (Net, r'`sam_variant="flat_lora"` is for LoRA: .* no LoRA layer'),
    "dora": (lambda: adapted(use_dora=True), r"has a variant of LoRA \(such as DoRA\)"),
    "tied": (
        lambda: adapted(Tied(), target_modules=["first"]),
        r"'base_model\.model\.first' has a weight that is tied to another module's",
    ),
    "embedding": (lambda: adapted(Embedded()), r"'base_model\.model\.first' has an embedding"),
    "int8": (
        lambda: quantised(lambda w: nn.Parameter(w.to(torch.int8), requires_grad=False)),
        r"has a quantised weight \(Parameter of torch\.int8\)",
    ),
    "4 bits": (
        lambda: quantised(lambda w: Params4bit(w, requires_grad=False)),
        r"has a quantised weight \(Params4bit of torch\.float64\)",
    ),
    "float8": (
        lambda: quantised(lambda w: nn.Parameter(w.to(torch.float8_e4m3fn), requires_grad=False)),
        r"\(Parameter of torch\.float8_e4m3fn\)",
    ),
    "meta": (lambda: quantised(lambda w: nn.Parameter(w.to("meta"))), "has a weight that is not in memory"),
    "groups": (grouped, "has a Conv2d, which is more than one weight matrix"),
    "attention": (
        lambda: adapted(nn.ModuleDict({"first": nn.MultiheadAttention(4, 2)}), target_modules=["first"]),
        "has a MultiheadAttention, which is more than one weight matrix",
    ),
}


@looped
@pytest.mark.parametrize("case", REFUSED)
def test_a_weight_that_cannot_take_the_noise_is_refused_with_the_way_out(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        FlatLoRA().prepare_model(make())
    assert "choose sam_variant=" in str(error.value) or "choose another variant" in str(error.value)


def test_a_run_of_unknown_length_is_refused_with_the_way_out() -> None:
    variant = FlatLoRA()
    variant.prepare_model(adapted())
    with pytest.raises(ValueError, match=r"their number is not known\. Set `max_steps`"):
        variant.direction_before_pass([], 0.05, StepContext(step=3))


def test_pieces_of_flattened_weights_are_refused() -> None:
    model = adapted()
    variant = FlatLoRA()
    variant.prepare_model(model)
    weight = layer(model, "first").get_base_layer().weight
    weight.data = weight.data.flatten()
    with pytest.raises(NotImplementedError, match=r"needs the whole of each weight .* Train with DDP"):
        variant.direction_before_pass([], 0.05, MOMENT)
