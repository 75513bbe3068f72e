# SPDX-License-Identifier: Apache-2.0
"""Are frozen weights used as they are stored, in few bits, and measured as if they were not?"""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_sam.sharpness import SharpnessAnalyzer
from tests.sharpness.models import build


class Teacher(nn.Module):
    """A model with all kinds of frozen weights, which writes into some of what it holds in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.body, self.norm = nn.Embedding(7, 6), nn.Linear(6, 6), nn.LayerNorm(6)
        self.teacher, self.head = nn.Linear(6, 3), nn.Linear(6, 3)
        self.shift = nn.Parameter(torch.randn(6, 6))
        for part in (self.table, self.body, self.norm, self.teacher, self.shift):
            part.requires_grad_(False)
        self.generator, self.numpy = torch.Generator().manual_seed(5), np.random.default_rng(5)
        self.queue, self.sums, self.calls = [1], torch.zeros(3), 0
        self.register_buffer("seen", torch.zeros(2))
        self.writes = False

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = self.norm(self.body(self.table(x).mean(1)).tanh()).to(self.shift.dtype) @ self.shift.T
        z = self.head(hidden)
        if self.writes:
            with torch.no_grad():
                self.teacher.weight.mul_(0.9).add_(self.head.weight, alpha=0.1)
                self.teacher.bias.data.add_(1)
                self.sums += z.mean(0)
            self.queue.append(2)
            self.calls += 1
            self.seen.resize_(3).fill_(1.0)
            hidden = hidden + torch.rand((), generator=self.generator) + self.numpy.random()
        return {"loss": nn.functional.cross_entropy(z + 0.1 * self.teacher(hidden), labels)}


def examples() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randint(0, 7, (4,), generator=generator), "labels": i % 3} for i in range(6)]


def narrowed(model: Teacher) -> Teacher:
    """Store the frozen weights in bfloat16."""
    for p in model.parameters():
        if not p.requires_grad:
            p.data = p.data.to(torch.bfloat16)
    return model


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_narrow_frozen_weights_give_the_numbers_of_wide_ones(dtype: str) -> None:
    model = narrowed(Teacher())
    wide = Teacher()
    wide.load_state_dict(model.state_dict())
    ones = [SharpnessAnalyzer(m, examples(), dtype=dtype, batch_size=2) for m in (model, wide)]
    v = torch.randn(2, ones[0].loss_function.size, dtype=ones[0].loss_function.dtype)
    products = [one.loss_function.products(v) for one in ones]
    torch.testing.assert_close(products[0], products[1], rtol=1e-5, atol=1e-6)
    assert ones[0].loss() == pytest.approx(ones[1].loss(), rel=1e-6)
    assert model.body.weight.dtype == torch.bfloat16


def test_frozen_weights_are_not_copied() -> None:
    model = narrowed(Teacher())
    one = SharpnessAnalyzer(model, examples(), graphs=9)
    borrowed = one.loss_function.borrowed
    copied = sum(t.numel() for t in borrowed._copies.values())
    assert copied == one.loss_function.size + model.seen.numel()
    with borrowed.with_copies() as inside:
        assert inside.body.weight.untyped_storage().data_ptr() == model.body.weight.untyped_storage().data_ptr()
        assert inside.body.weight.dtype == torch.float32  # as the model's code sees it
        assert inside.table.weight.shape == (7, 6)


def test_the_graph_keeps_the_narrow_weights() -> None:
    torch.manual_seed(0)
    inputs, outputs = nn.Linear(4, 512), nn.Linear(512, 512, dtype=torch.bfloat16).requires_grad_(False)

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inputs, self.outputs = inputs, outputs

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": self.outputs(self.inputs(x)).square().mean()}

    rows = [{"x": torch.randn(4), "labels": 0} for _ in range(2)]
    one = SharpnessAnalyzer(Wide(), rows)
    with one.loss_function.borrowed.with_copies() as model:
        loss = model(**one.examples.batches()[0])["loss"]
        gc.collect()
        tensors = [t for t in gc.get_objects() if isinstance(t, Tensor) and t.shape == (512, 512)]
        wide = [t for t in tensors if id(t) != id(model.outputs.weight) and t.dtype == torch.float32]
        assert loss.requires_grad
        assert not wide


@pytest.mark.slow
def test_lora_on_a_base_in_16_bits() -> None:
    peft = pytest.importorskip("peft")
    base, rows = build("bert")
    base.float()
    settings = peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(base, settings)
    for p in model.parameters():
        if not p.requires_grad:
            p.data = p.data.to(torch.bfloat16)
    found = SharpnessAnalyzer(model, rows, batch_size=4).top_eigenvalues().values[0]
    for p in model.parameters():
        p.data = p.data.float()
    assert found == pytest.approx(SharpnessAnalyzer(model, rows, batch_size=4).top_eigenvalues().values[0], rel=1e-4)


def test_what_a_forward_pass_writes_leaves_no_trace() -> None:
    model = Teacher()
    model.writes = True
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn, numpy = model.generator.get_state(), model.numpy.bit_generator.state
    tensors = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    one = SharpnessAnalyzer(model, examples(), batch_size=6)
    assert one.loss() == one.loss()
    assert one.sam_sharpness().loss == one.loss()
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == tensors[name]
        assert torch.equal(tensor, before[name])
    assert torch.equal(model.generator.get_state(), drawn)
    assert model.numpy.bit_generator.state == numpy
    assert (model.queue, model.calls, model.sums.tolist()) == ([1], 0, [0.0] * 3)


@pytest.mark.parametrize("kind", ["complex", "devices", "flash"])
def test_what_cannot_be_measured_is_refused_in_words(kind: str) -> None:
    model, rows = build("bert")
    if kind == "complex":
        model.extra = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    elif kind == "devices":
        model.hf_device_map = {"bert": 0, "classifier": "cpu"}
    else:
        model.config._attn_implementation = "flash_attention_2"
    words = {"complex": "extra is complex", "devices": "one device, and this one is on 0, cpu", "flash": "'sdpa'"}
    with pytest.raises(NotImplementedError, match=words[kind]):
        SharpnessAnalyzer(model, rows)
