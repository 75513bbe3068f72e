# SPDX-License-Identifier: Apache-2.0
"""Flat-LoRA holds a copy of the weights under the adapters, and the noise of one layer at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("peft")

from peft import LoraConfig, get_peft_model

from hf_sam import FlatLoRA
from hf_sam.step.one_pass import one_pass_step
from hf_sam.step_context import StepContext
from tests.compare import bits, same_bits
from tests.step.test_cost import Memory

LAYERS, SIZE = 10, 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_noise_of_one_layer_is_in_memory_at_a_time(dtype: torch.dtype) -> None:
    model: Any = nn.Sequential(*[nn.Linear(SIZE, SIZE, bias=False, dtype=dtype) for _ in range(LAYERS)])
    model = get_peft_model(model, LoraConfig(r=1, target_modules=[str(i) for i in range(LAYERS)]))
    base = [m.get_base_layer().weight for m in model.modules() if hasattr(m, "get_base_layer")]
    variant, layer = FlatLoRA(), base[0].numel() * base[0].element_size()
    variant.prepare_model(model)
    before, during = bits(base), []
    with Memory(leave_out=list(model.parameters())) as memory:

        def evaluate() -> None:
            during.extend([memory.live(), memory.peak])  # what follows makes copies
            assert not any(map(same_bits, ([b] for b in bits(base)), ([b] for b in before)))

        one_pass_step(evaluate, [], variant, rho=0.1, context=StepContext(step=10, steps=10))
        live, peak = (size / layer for size in during)
    assert live == pytest.approx(LAYERS, abs=0.2)
    wide = 4 / base[0].element_size()  # the noise is drawn in float32
    assert peak <= LAYERS + 3 * wide + 0.5
    assert same_bits(bits(base), before)
