# SPDX-License-Identifier: Apache-2.0
"""Do nBAR and oBAR balance LoRA's factors as the paper says, on real LoRA layers, and nothing else?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hf_sam.step_context import StepContext
from hf_sam.variants.lora.bar import BAR, NBAR, OBAR
from hf_sam.vectors.vectors import snapshot
from tests.compare import bits, same_bits
from tests.looped import looped
from tests.reference import lora_numpy, sam_numpy
from tests.tolerances import RELATIVE
from tests.variants.lora.adapted import (
    SCALING,
    STEPS,
    Headed,
    Mixed,
    adapted,
    as_numpy,
    backward,
    data,
    distance,
    factors,
    peft,
)

LR, ALPHA = 0.1, 0.5
OPTIMIZERS: dict[str, tuple[Callable[..., Any], Any]] = {
    "sgd": (
        lambda params: torch.optim.SGD(params, lr=LR, momentum=0.9, weight_decay=0.1),
        lambda: sam_numpy.SGD(LR, 0.9, 0.1),
    ),
    "adamw": (
        lambda params: torch.optim.AdamW(params, lr=LR, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1),
        lambda: sam_numpy.AdamW(LR, (0.9, 0.99), 1e-8, 0.1),
    ),
}
RULES = {NBAR: lora_numpy.a_grows_in_nbar, OBAR: lora_numpy.a_grows_in_obar}
both = pytest.mark.parametrize("kind", [NBAR, OBAR])


def prepared(kind: type[BAR], model: nn.Module) -> BAR:
    variant = kind()
    variant.prepare_model(model)
    return variant


def shrinks_and_grows(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return by what factor the whole tensor was multiplied."""
    ratio = after / before
    torch.testing.assert_close(ratio, torch.full_like(ratio, ratio.flatten()[0].item()), rtol=1e-5, atol=0)
    return ratio.flatten()[0].item()


@both
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_twenty_steps_equal_the_algorithms_of_the_paper(kind: type[BAR], optimizer: str) -> None:
    model, variant = adapted(), kind()
    variant.prepare_model(model)
    frozen, expected = as_numpy(model)
    make, make_reference = OPTIMIZERS[optimizer]
    torch_optimizer, reference = make([p for p in model.parameters() if p.requires_grad]), make_reference()
    grew = set()
    for step in range(STEPS):
        x, y = data()
        alpha = ALPHA * (1 - step / STEPS)
        backward(model, x, y)
        variant.adjust_(alpha, StepContext(step=step, steps=STEPS, lr=LR))
        torch_optimizer.step()
        grew |= set(lora_numpy.bar_step(frozen, expected, SCALING, x.numpy(), y.numpy(), RULES[kind], alpha, reference))
        assert distance(model, expected) < RELATIVE[torch.float64]
    assert grew == {True, False}  # both branches were taken


@both
def test_the_product_is_kept_to_second_order(kind: type[BAR]) -> None:
    model = adapted()
    backward(model, *data())
    a, b = factors(model, "first")
    product = b @ a
    prepared(kind, model).adjust_(ALPHA, StepContext(lr=1e-3))
    torch.testing.assert_close(b @ a, product * (1 - (ALPHA * 1e-3) ** 2), rtol=1e-12, atol=0)


def test_nbar_grows_the_factor_with_the_longer_gradient_and_obar_shrinks_the_longer_factor() -> None:
    model = adapted()
    (a1, b1), (a2, b2) = factors(model, "first"), factors(model, "second")
    with torch.no_grad():
        for t, value in ((a1, 2.0), (b1, 0.01), (a2, 0.01), (b2, 2.0)):
            t.fill_(value)
    for t, value in ((a1, 5.0), (b1, 0.1), (a2, 5.0), (b2, 0.1)):
        t.grad = torch.full_like(t, value)
    for kind, signs in ((NBAR, (1, -1, 1, -1)), (OBAR, (-1, 1, 1, -1))):
        before = snapshot([a1, b1, a2, b2])
        prepared(kind, model).adjust_(ALPHA, StepContext(lr=LR))
        found = [shrinks_and_grows(w, t.detach()) for w, t in zip(before, (a1, b1, a2, b2), strict=True)]
        assert found == pytest.approx([1 + sign * ALPHA * LR for sign in signs], rel=1e-12)


@both
@pytest.mark.parametrize("strength", [0.0, torch.tensor(0.0)], ids=str)
def test_strength_zero_changes_no_bit(kind: type[BAR], strength: Any) -> None:
    model = adapted()
    backward(model, *data())
    before = bits(model.parameters())
    prepared(kind, model).adjust_(strength, StepContext(lr=LR))
    assert same_bits(bits(model.parameters()), before)


@both
def test_strength_may_be_a_tensor(kind: type[BAR]) -> None:
    found = []
    for strength in (ALPHA, torch.tensor(ALPHA, dtype=torch.float64)):
        torch.manual_seed(0)
        model = adapted()
        backward(model, *data())
        prepared(kind, model).adjust_(strength, StepContext(lr=LR))
        found.append(bits(model.parameters()))
    assert same_bits(*found)


@both
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_nothing_changes_anywhere_when_one_gradient_is_bad(kind: type[BAR], bad: float) -> None:
    model = adapted()
    backward(model, *data())
    factors(model, "second")[1].grad[0, 0] = bad
    before = bits(model.parameters())
    prepared(kind, model).adjust_(ALPHA, StepContext(lr=LR))
    assert same_bits(bits(model.parameters()), before)


def test_nbar_leaves_a_layer_alone_that_the_loss_did_not_reach() -> None:
    model = adapted()
    backward(model, *data())
    for t in factors(model, "second"):
        t.grad.zero_()
    before = {name: bits(factors(model, name)) for name in ("first", "second")}
    prepared(NBAR, model).adjust_(ALPHA, StepContext(lr=LR))
    assert same_bits(bits(factors(model, "second")), before["second"])
    assert not same_bits(bits(factors(model, "first")), before["first"])


@looped
@both
@pytest.mark.parametrize("how", ["frozen", "no gradient"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_layer_with_one_factor_out_of_play_is_left_alone(kind: type[BAR], how: str, which: int) -> None:
    model = adapted()
    variant = prepared(kind, model)
    backward(model, *data())
    if how == "frozen":
        factors(model, "second")[which].requires_grad_(False)  # the gradient of an earlier step is still there
    else:
        factors(model, "second")[which].grad = None
    before = {name: bits(factors(model, name)) for name in ("first", "second")}
    variant.adjust_(ALPHA, StepContext(lr=LR))
    assert same_bits(bits(factors(model, "second")), before["second"])
    assert not same_bits(bits(factors(model, "first")), before["first"])


@both
def test_everything_but_the_factors_is_left_alone(kind: type[BAR]) -> None:
    model = adapted(Headed(), modules_to_save=["head"], bias="lora_only", lora_dropout=0.2)
    backward(model, *data())
    before = {name: bits([p]) for name, p in model.named_parameters()}
    prepared(kind, model).adjust_(ALPHA, StepContext(lr=LR))
    moved = {name for name, p in model.named_parameters() if not same_bits(bits([p]), before[name])}
    assert moved == {name for name in before if ".lora_" in name}


@both
def test_of_several_adapters_only_the_active_ones_move_also_when_they_change_in_mid_training(kind: type[BAR]) -> None:
    model = adapted()
    model.add_adapter("other", peft.LoraConfig(r=4, target_modules=["first", "second"], init_lora_weights=False))
    model.double()
    variant = prepared(kind, model)
    for active in ("default", "other"):
        model.set_adapter(active)
        backward(model, *data())
        before = {name: bits([p]) for name, p in model.named_parameters()}
        variant.adjust_(ALPHA, StepContext(lr=LR))
        moved = {name for name, p in model.named_parameters() if not same_bits(bits([p]), before[name])}
        assert moved == {name for name in before if f".{active}." in name}


@both
def test_two_active_adapters_are_two_layers(kind: type[BAR]) -> None:
    model = adapted()
    model.add_adapter("other", peft.LoraConfig(r=4, target_modules=["first"], init_lora_weights=False))
    model.double().base_model.set_adapter(["default", "other"])
    backward(model, *data())
    before = {name: bits([p]) for name, p in model.named_parameters()}
    prepared(kind, model).adjust_(ALPHA, StepContext(lr=LR))
    moved = {name for name, p in model.named_parameters() if not same_bits(bits([p]), before[name])}
    assert moved == {name for name in before if ".lora_" in name}


@both
@pytest.mark.parametrize(
    "options", [{}, {"rank_pattern": {"conv": 4}, "use_rslora": True}, {"use_dora": True}], ids=str
)
def test_every_kind_of_lora_layer_is_balanced(kind: type[BAR], options: dict[str, Any]) -> None:
    config = peft.LoraConfig(
        r=2, target_modules=["embedding", "conv", "transposed"], init_lora_weights=False, **options
    )
    model = peft.get_peft_model(Mixed(), config)
    model(torch.tensor([1, 3, 5])).square().sum().backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    prepared(kind, model).adjust_(ALPHA, StepContext(lr=LR))
    after = dict(model.named_parameters())
    for place in (
        "embedding.lora_embedding_%s.default",
        "conv.lora_%s.default.weight",
        "transposed.lora_%s.default.weight",
    ):
        names = [f"base_model.model.{place}" % letter for letter in "AB"]
        found = {round(shrinks_and_grows(before[name], after[name].detach()), 4) for name in names}
        assert found == {1 + ALPHA * LR, 1 - ALPHA * LR}


@both
def test_each_factor_has_the_learning_rate_of_its_group(kind: type[BAR]) -> None:
    """LoRA+ gives B a larger one than A."""
    model = adapted()
    backward(model, *data())
    pairs = {name: factors(model, name) for name in ("first", "second")}
    groups = [{"params": [pair[i] for pair in pairs.values()], "lr": lr} for i, lr in enumerate((0.01, 0.16))]
    rates = (0.01, 0.16)
    for lr_of_b in (0.16, torch.tensor(0.16, dtype=torch.float64)):
        groups[1]["lr"] = lr_of_b
        before = {name: snapshot(list(pair)) for name, pair in pairs.items()}
        context = StepContext(lr=9.0, optimizer=torch.optim.SGD(groups, lr=1.0))
        prepared(kind, model).adjust_(ALPHA, context)
        for name, pair in pairs.items():
            found = [shrinks_and_grows(w, t.detach()) - 1 for w, t in zip(before[name], pair, strict=True)]
            assert [abs(x) for x in found] == pytest.approx([ALPHA * lr for lr in rates], rel=1e-6)
            assert found[0] * found[1] < 0


@both
def test_an_optimizer_without_a_learning_rate_is_refused(kind: type[BAR]) -> None:
    model = adapted()
    backward(model, *data())
    with pytest.raises(ValueError, match=r"sam_variant='.bar'.* follows the learning rate"):
        prepared(kind, model).adjust_(ALPHA, StepContext(lr=None))


@both
def test_the_optimizer_that_peft_makes_for_lora_plus_is_followed(kind: type[BAR]) -> None:
    model = adapted()
    backward(model, *data())
    optimizers = pytest.importorskip("peft.optimizers")
    optimizer = optimizers.create_loraplus_optimizer(model, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=16)
    before = [snapshot(list(factors(model, name))) for name in ("first", "second")]
    prepared(kind, model).adjust_(ALPHA, StepContext(lr=0.16, optimizer=optimizer))
    for (a, b), name in zip(before, ("first", "second"), strict=True):
        after = factors(model, name)
        assert abs(shrinks_and_grows(a, after[0].detach()) - 1) == pytest.approx(ALPHA * 0.01, rel=1e-6)
        assert abs(shrinks_and_grows(b, after[1].detach()) - 1) == pytest.approx(ALPHA * 0.16, rel=1e-6)
