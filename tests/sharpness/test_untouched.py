# SPDX-License-Identifier: Apache-2.0
"""Is a model after a measurement what it was before, to the bit and to the object?"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_sam.sharpness import SharpnessAnalyzer, landscape_1d, landscape_2d
from tests.covering import covering
from tests.sharpness.models import FAMILIES, build

families = pytest.mark.parametrize("family", FAMILIES)
MEASURES: dict[str, Callable[[SharpnessAnalyzer], Any]] = {
    "top_eigenvalues": lambda one: one.top_eigenvalues(),
    "trace": lambda one: one.trace(6),
    "density": lambda one: one.density(3, 1),
    "sam_sharpness": lambda one: one.sam_sharpness(m=2),
    "worst_case": lambda one: one.worst_case(steps=2, adaptive=True),
    "average_case": lambda one: one.average_case(n=1),
    "per_module": lambda one: one.per_module(["*"], 6),
    "report": lambda one: one.report(k=1, products=6, steps=1),
    "landscape_1d": lambda one: landscape_1d(one, points=2),
    "landscape_2d": lambda one: landscape_2d(one, points=2),
}


def state(model: nn.Module) -> list[Any]:
    """Return everything that could be told apart afterwards: objects by identity, tensors by their bits too."""
    found: list[Any] = []
    for module in model.modules():
        found.append((id(module), module.training, sorted(vars(module)), vars(module).get("forward")))
        for own in (module._parameters, module._buffers):
            found += [
                (name, id(t), None if t is None else (t.data_ptr(), t.requires_grad, t.numpy(force=True).tobytes()))
                for name, t in own.items()
            ]
        found.append({kind: dict(getattr(module, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks")})
    found += [None if p.grad is None else (id(p.grad), p.grad.numpy().tobytes()) for p in model.parameters()]
    found.append(model.config.to_dict())
    return found


def streams() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, keys.tobytes(), rest, torch.get_rng_state().numpy().tobytes()


def in_training(model: nn.Module) -> nn.Module:
    """Put a model into the middle of training: some gradients, a frozen parameter, parts in evaluation mode, a hook."""
    model.train()
    first, *_, last = model.parameters()
    first.requires_grad_(False)
    last.grad = torch.ones_like(last)
    next(module for module in model.modules() if not list(module.children())).eval()
    model.register_forward_hook(lambda *_: None)
    return model


def prepared(family: str) -> tuple[nn.Module, Any]:
    model, examples = build(family)
    return in_training(model), examples


# Every measurement on one model, every model under one measurement of each kind.
@pytest.mark.parametrize(
    ("family", "measure"),
    covering(
        product(FAMILIES, MEASURES),
        fast=[*product(["vit"], ("trace", "sam_sharpness", "landscape_1d")), ("resnet", "worst_case")],
        slow=[
            *product(["vit"], MEASURES),
            *product(FAMILIES, ("top_eigenvalues", "worst_case", "landscape_2d")),
        ],
    ),
)
def test_nothing_changes(family: str, measure: str) -> None:
    model, examples = prepared(family)
    torch.rand(3)
    before, drawn = state(model), streams()
    MEASURES[measure](SharpnessAnalyzer(model, examples, batch_size=4))
    assert state(model) == before
    assert streams() == drawn


@families
def test_nor_when_the_model_fails_in_the_middle(family: str) -> None:
    model, examples = prepared(family)
    calls = []

    def failing(*_: Any) -> None:
        calls.append(model.training)
        if len(calls) == 5:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(failing)
    before, drawn = state(model), streams()
    with pytest.raises(KeyboardInterrupt):
        SharpnessAnalyzer(model, examples, batch_size=4).sam_sharpness()
    assert state(model) == before
    assert streams() == drawn
    assert not any(calls)  # it was in evaluation mode


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_models_own_weights_are_not_written_to_even_for_a_moment(dtype: str) -> None:
    model, examples = build("bert")
    own = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    seen = []

    def look(*_: Any) -> None:
        seen.append(all(torch.equal(p, copy) for p, copy in own.values()))

    model.register_forward_pre_hook(look)
    SharpnessAnalyzer(model, examples, dtype=dtype).worst_case(1.0, steps=2)
    assert seen == [True] * len(seen)
    assert len(seen) >= 3


def test_a_collator_that_draws_gives_the_same_batches_and_leaves_the_streams() -> None:
    model, examples = build("bert")

    def collator(features: list[Any]) -> dict[str, torch.Tensor]:
        batch = {key: torch.stack([torch.as_tensor(f[key]) for f in features]) for key in features[0]}
        batch["input_ids"] = torch.where(torch.rand(batch["input_ids"].shape) < 0.3, 3, batch["input_ids"])
        return batch

    drawn = streams()
    found = [SharpnessAnalyzer(model, examples, collator, dtype="float64").loss() for _ in range(2)]
    assert found[0] == found[1]
    assert found[0] != SharpnessAnalyzer(model, examples, collator, dtype="float64", seed=1).loss()
    assert streams() == drawn


def test_a_data_set_that_draws_gives_the_same_examples() -> None:
    class Noisy(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> dict[str, Any]:
            shift = torch.rand(()) + random.random() + np.random.rand()
            return {"pixel_values": examples[i]["pixel_values"] + shift, "labels": i % 3}

    model, examples = build("vit")
    drawn = streams()
    assert SharpnessAnalyzer(model, Noisy()).loss() == SharpnessAnalyzer(model, Noisy()).loss()
    assert streams() == drawn


def test_dropout_is_off_and_two_products_are_the_same_bits() -> None:
    model, examples = build("vit")
    loss_function = SharpnessAnalyzer(model.train(), examples).loss_function
    v = torch.randn(1, loss_function.size)
    assert torch.equal(loss_function.products(v), loss_function.products(v))


@torch.no_grad()
def test_gradients_are_there_where_they_are_switched_off() -> None:
    one = SharpnessAnalyzer(*build("bert"))
    assert one.top_eigenvalues().values[0] > 0
    assert not torch.is_grad_enabled()


def test_lstm_weights_keep_their_second_list() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": nn.functional.cross_entropy(self.head(self.lstm(x)[0][:, -1]), labels)}

    model = Recurrent()
    examples = [{"x": torch.randn(5, 3), "labels": torch.tensor(i % 2)} for i in range(4)]
    weights = [id(w) for w in model.lstm._flat_weights]
    one = SharpnessAnalyzer(model, examples, dtype="float64")
    assert one.sam_sharpness().value > 0
    assert [id(w) for w in model.lstm._flat_weights] == weights
    assert model.lstm.weight_hh_l0.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["compiled", "data parallel"])
def test_wrappers_are_taken_off(kind: str) -> None:
    model, examples = build("bert")
    wrapped = torch.compile(model) if kind == "compiled" else nn.DataParallel(model)
    assert SharpnessAnalyzer(wrapped, examples).loss() == SharpnessAnalyzer(model, examples).loss()


def test_autocast_around_it_and_inside_of_a_prepared_model_changes_nothing() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    model, examples = build("bert")
    model.float()
    expected = SharpnessAnalyzer(model, examples).loss()
    with torch.autocast("cpu", torch.bfloat16):
        assert SharpnessAnalyzer(model, examples).loss() == expected
    AcceleratorState._reset_state(reset_partial_state=True)
    prepared_model = Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    forward = vars(prepared_model)["forward"]
    assert SharpnessAnalyzer(prepared_model, examples).loss() == expected
    assert SharpnessAnalyzer(prepared_model, examples, dtype="as loaded").loss() != expected
    assert vars(prepared_model)["forward"] is forward
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_model_that_was_trained_on_is_not_measured_as_it_was() -> None:
    model, examples = prepared("vit")
    one = SharpnessAnalyzer(model, examples)
    one.sam_sharpness()
    torch.optim.SGD([p for p in model.parameters() if p.grad is not None], lr=0.1).step()
    with pytest.raises(RuntimeError, match=r"have changed since this analyzer was made.* make a new one"):
        one.sam_sharpness()
    SharpnessAnalyzer(model, examples).sam_sharpness()
