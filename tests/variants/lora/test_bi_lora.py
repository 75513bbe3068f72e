# SPDX-License-Identifier: Apache-2.0
"""Does Bi-LoRA's second LoRA climb as the paper says, within its radius, unseen by everything else?"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import set_seed

from hf_sam.config.sam_config import SAMConfig
from hf_sam.step_context import StepContext
from hf_sam.trainer.state_file import load_state, save_state
from hf_sam.variants.lora.bi_lora import BiLoRA
from tests.reference import lora_numpy, sam_numpy
from tests.tolerances import RELATIVE
from tests.variants.lora.adapted import (
    SCALING,
    STEPS,
    Mixed,
    Net,
    adapted,
    as_numpy,
    backward,
    data,
    distance,
    layer,
)

LR, RHO = 0.1, 0.3
MOMENT = StepContext(lr=LR)
Pair = tuple[Callable[[Any], Any], Callable[[], Any]]
OPTIMIZERS: dict[str, Pair] = {
    "sgd": (lambda params: torch.optim.SGD(params, lr=LR), lambda: sam_numpy.SGD(LR, 0.0, 0.0)),
    "adam": (
        lambda params: torch.optim.AdamW(params, lr=LR, weight_decay=0.1),
        lambda: sam_numpy.AdamW(LR, (0.9, 0.999), 1e-8, 0.1),
    ),
}
CLIMBERS = {
    "sgd": lambda: sam_numpy.SGD(LR, 0.0, 0.0),
    "adam": lambda: sam_numpy.AdamW(LR, (0.9, 0.999), 1e-8, 0.0),
}


def prepared(model: nn.Module, **options: Any) -> BiLoRA:
    variant = BiLoRA(**options)
    variant.prepare_model(model)
    return variant


def second(variant: BiLoRA) -> dict[str, np.ndarray]:
    """Return A2 and B2 by the names of the reference."""
    found = {}
    for name, branch in variant._branches.items():
        for letter, t in (("A", branch.a), ("B", branch.b)):
            found[f"{name.rpartition('.')[2]}.{letter}"] = t.detach().numpy().copy()
    return found


def climbed(model: nn.Module, steps: int = 3, **options: Any) -> BiLoRA:
    """Return a Bi-LoRA that perturbs."""
    variant = prepared(model, **options)
    for _ in range(steps):
        backward(model, *data())
        variant.adjust_(RHO, MOMENT)
    assert variant.norm() > 0.01
    return variant


# ----------------------------------------------------------------------------------------------------------------------
# The method
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rho", [0.01, 0.3, 100.0])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_twenty_steps_equal_the_algorithm_of_the_paper(optimizer: str, rho: float) -> None:
    model = adapted()
    variant = prepared(model, rank=3, optimizer=optimizer)
    frozen, expected = as_numpy(model)
    make, make_reference = OPTIMIZERS[optimizer]
    torch_optimizer = make([p for p in model.parameters() if p.requires_grad])
    references = (make_reference(), CLIMBERS[optimizer]())
    expected_second = second(variant)
    for step in range(STEPS):
        x, y = data()
        backward(model, x, y)
        variant.adjust_(rho, MOMENT)
        torch_optimizer.step()
        if step == 0:  # a plain one
            _, g = lora_numpy.loss_and_gradient(frozen, expected, SCALING, x.numpy(), y.numpy())
            references[0].step(expected, g)
        else:
            lora_numpy.bi_lora_step(frozen, expected, expected_second, SCALING, x.numpy(), y.numpy(), rho, references)
        assert distance(model, expected) < 10 * RELATIVE[torch.float64]
        for name, found in second(variant).items():
            size = abs(expected_second[name]).max()
            assert abs(found - expected_second[name]).max() <= 10 * RELATIVE[torch.float64] * size
    assert variant.norm() > 0.5 * min(rho, 0.1)
    assert (variant.norm() <= rho * (1 + 1e-12)).item()


def test_the_perturbation_climbs_and_the_norm_is_that_of_the_products() -> None:
    model = adapted()
    x, y = data()
    variant = prepared(model)
    losses = []
    for _ in range(30):  # with A and B as they are, so that only the second LoRA learns
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        losses.append(loss.item())
        variant.adjust_(RHO, MOMENT)
    assert losses[-1] > losses[0] + 0.01
    products = [branch.b @ branch.a for branch in variant._branches.values()]
    assert variant.norm().item() == pytest.approx(torch.cat([p.flatten() for p in products]).norm().item(), rel=1e-12)
    assert variant.norm().item() == pytest.approx(RHO, rel=1e-9)


def test_micro_batches_add_up() -> None:
    x, y = data(8)
    found = []
    for pieces in (1, 4):
        set_seed(1)
        model = adapted()
        variant = prepared(model)
        for _ in range(3):
            model.zero_grad()
            for part_x, part_y in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
                (nn.functional.cross_entropy(model(part_x), part_y) / pieces).backward()
            variant.adjust_(RHO, MOMENT)
        found.append(variant._state["theta"].clone())
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_scale_of_the_loss_makes_no_difference(optimizer: str) -> None:
    found = []
    for scale in (1.0, 1024.0):
        set_seed(1)
        model = adapted()
        variant = prepared(model, optimizer=optimizer)
        for step in range(4):
            variant.loss_scale = scale * (1 + step if scale > 1 else 1)  # a scaler's changes as it goes
            x, y = data()
            model.zero_grad()
            (nn.functional.cross_entropy(model(x), y) * variant.loss_scale).backward()
            variant.adjust_(RHO, MOMENT)
        found.append(variant._state["theta"].clone())
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_bad_gradient_changes_nothing_and_is_forgotten(bad: float) -> None:
    model = adapted()
    variant = climbed(model)
    backward(model, *data())
    variant._state["gradient"][3] = bad
    before = {k: v.clone() for k, v in variant._state.items()}
    variant.adjust_(RHO, MOMENT)
    assert all(torch.equal(variant._state[k], v) for k, v in before.items() if k not in ("gradient", "theta"))
    torch.testing.assert_close(variant._state["theta"], before["theta"], rtol=1e-14, atol=0)  # but for the radius
    assert not variant._state["gradient"].any()
    backward(model, *data())
    variant.adjust_(RHO, MOMENT)
    assert torch.isfinite(variant._state["theta"]).all()
    assert not torch.equal(variant._state["theta"], before["theta"])


# ----------------------------------------------------------------------------------------------------------------------
# State, options, and what it is not for
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_has_the_same_bits(optimizer: str, tmp_path: Any) -> None:
    model = adapted()
    variant = climbed(model, optimizer=optimizer)
    save_state(tmp_path, SAMConfig(), variant.state_dict())
    other = copy.deepcopy(model)
    for name in ("first", "second"):
        layer(other, name)._forward_hooks.clear()  # the copies of the branches
    resumed = prepared(other, optimizer=optimizer)
    _, state = load_state(tmp_path)
    resumed.load_state_dict(state)
    batches = [data() for _ in range(3)]
    for each, its in ((model, variant), (other, resumed)):
        for batch in batches:
            backward(each, *batch)
            its.adjust_(RHO, MOMENT)
    assert torch.equal(variant._state["theta"], resumed._state["theta"])


def test_a_state_that_does_not_fit_is_refused() -> None:
    state = climbed(adapted()).state_dict()
    with pytest.raises(ValueError, match=r"rank=2\) cannot take the state of another rank"):
        prepared(adapted(), rank=2).load_state_dict(state)
    with pytest.raises(ValueError, match="cannot take the state"):
        prepared(adapted(), optimizer="sgd").load_state_dict(state)
    with pytest.raises(ValueError, match="with 1 layers cannot take the state"):
        prepared(adapted(target_modules=["first"])).load_state_dict(state)
    with pytest.raises(ValueError, match="of_another_variant"):
        BiLoRA().load_state_dict({"of_another_variant": 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"`BiLoRA\(rank=\.\.\.\)` must be a whole number >= 1, got 0\."),
        ({"rank": True}, r"got True\."),
        ({"rank": 2.0}, r"got 2\.0\."),
        ({"optimizer": "lion"}, r"`BiLoRA\(optimizer=\.\.\.\)` must be one of adam, sgd, got 'lion'\."),
    ],
    ids=str,
)
def test_a_bad_option_is_named_with_its_rule_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BiLoRA(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Net, r'`sam_variant="bi_lora"` is for LoRA: .* no LoRA layer'),
        (lambda: adapted(Mixed(), target_modules=["embedding"]), r"'base_model\.model\.embedding' is a Embedding"),
        (lambda: adapted(Mixed(), target_modules=["conv"]), r"'base_model\.model\.conv' is a Conv2d\. Leave it out"),
    ],
    ids=["no lora", "embedding", "convolution"],
)
def test_layers_that_are_not_linear_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BiLoRA().prepare_model(make())


def test_a_transposed_linear_layer_is_one_too() -> None:
    model = adapted(Mixed(), target_modules=["transposed"])
    variant = prepared(model)
    for _ in range(3):
        model.zero_grad()
        output: Tensor = model(torch.tensor([1, 3, 5]))
        output.square().sum().backward()
        variant.adjust_(RHO, MOMENT)
    assert variant.norm().item() == pytest.approx(RHO, rel=1e-9)


@pytest.mark.parametrize("optimizer", CLIMBERS)
@pytest.mark.parametrize("tensors", [False, True])
def test_each_second_factor_climbs_with_the_learning_rate_of_the_first(optimizer: str, tensors: bool) -> None:
    """LoRA+ gives B, and so B2, a larger one than A and A2."""
    moves = []
    for rates in ((LR, LR), (LR, 16 * LR)):
        torch.manual_seed(0)
        model = adapted()
        variant = prepared(model, optimizer=optimizer)
        variant.adjust_(1e9, MOMENT)  # the first step switches the branches on
        backward(model, *data())
        before = second(variant)
        letters = [[p for n, p in model.named_parameters() if f"lora_{letter}" in n] for letter in "AB"]
        groups = [
            {"params": group, "lr": torch.tensor(lr) if tensors else lr}
            for group, lr in zip(letters, rates, strict=True)
        ]
        variant.adjust_(1e9, StepContext(lr=9.0, optimizer=torch.optim.SGD(groups, lr=1.0)))
        moves.append({name: w - before[name] for name, w in second(variant).items()})
    for name, once in moves[0].items():
        times = 16 if name.endswith("B") else 1
        np.testing.assert_allclose(moves[1][name], times * once, rtol=1e-5, atol=1e-12)
        assert abs(once).max() > 0 or name.endswith("A")
