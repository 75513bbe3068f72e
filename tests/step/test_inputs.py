# SPDX-License-Identifier: Apache-2.0
"""What does `sharpness_aware_grad` accept, and how does it say no?"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_sam import ASAM, SAM, Variant, sharpness_aware_grad
from hf_sam.vectors.vectors import Ascent
from tests.compare import bits, relative_error, same_bits
from tests.small_models import Branches, Classifier, backward_closure, square_closure


class Counting(SAM):
    """SAM that counts its steps and turns around every time."""

    def __init__(self) -> None:
        self.steps = 0

    def ascend(self, params: list[Tensor], grads: list[Tensor], rho: float) -> Ascent:
        self.steps += 1
        return super().ascend(params, grads, rho * (-1) ** self.steps)


class Halfway(SAM):
    """The mean of the clean and the perturbed gradient."""

    combines = True

    def combine(self, clean: list[Tensor], perturbed: list[Tensor]) -> list[Tensor]:
        return [(g + h) / 2 for g, h in zip(clean, perturbed, strict=True)]


def gradients(model: nn.Module, x: Tensor, parameters: Any = None, **kwargs: Any) -> list[Tensor]:
    sharpness_aware_grad(square_closure(model, x), model.parameters() if parameters is None else parameters, **kwargs)
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("form", [list, tuple, iter, lambda parameters: (p for p in parameters)])
@pytest.mark.parametrize("named", [False, True])
def test_parameters_may_come_in_any_iterable_with_or_without_names(form: Any, named: bool) -> None:
    model, x = Classifier(), torch.randn(16, 5)
    expected = bits(gradients(model, x))
    parameters = form(model.named_parameters() if named else model.parameters())
    assert same_bits(bits(gradients(model, x, parameters)), expected)


@pytest.mark.parametrize(("name", "instance"), [("sam", SAM()), ("asam", ASAM())])
def test_a_name_and_an_instance_give_the_same_gradient(name: str, instance: Variant) -> None:
    model, x = Classifier(), torch.randn(16, 5)
    assert same_bits(bits(gradients(model, x, variant=name)), bits(gradients(model, x, variant=instance)))


def test_variant_kwargs_reach_the_variant() -> None:
    model, x = Classifier(), torch.randn(16, 5)
    by_name = bits(gradients(model, x, variant="asam", variant_kwargs={"eta": 0.5}))
    assert same_bits(by_name, bits(gradients(model, x, variant=ASAM(eta=0.5))))
    assert not same_bits(by_name, bits(gradients(model, x, variant="asam")))


def test_an_instance_keeps_its_state_between_calls() -> None:
    model, x, variant = Classifier(), torch.randn(16, 5), Counting()
    there = bits(gradients(model, x, variant=variant))
    back = bits(gradients(model, x, variant=variant))
    assert variant.steps == 2
    assert not same_bits(there, back)
    assert same_bits(back, bits(gradients(model, x, variant="sam")))


def test_combine_sees_the_clean_and_the_perturbed_gradient() -> None:
    model, x = Classifier(), torch.randn(16, 5)
    clean = [g.clone() for g in gradients(model, x, rho=0)]
    perturbed = [g.clone() for g in gradients(model, x)]
    expected = [(g + h) / 2 for g, h in zip(clean, perturbed, strict=True)]
    assert relative_error(gradients(model, x, variant=Halfway()), expected) < 1e-6


def test_combine_counts_a_parameter_that_the_second_pass_did_not_reach_as_zero() -> None:
    model, x = Branches([{"left", "right"}, {"left"}]), torch.randn(8, 4)
    clean = Branches([{"left", "right"}])
    clean.load_state_dict(model.state_dict())
    square_closure(clean, x)()
    gradients(model, x, variant=Halfway())
    torch.testing.assert_close(model.right.weight.grad, clean.right.weight.grad / 2)


def test_a_parameter_without_elements_is_no_trouble() -> None:
    w, empty = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(0))
    sharpness_aware_grad(backward_closure(lambda: w.square().sum() + empty.sum()), [w, empty])
    assert empty.grad.shape == (0,)
    assert torch.isfinite(w.grad).all()


# ----------------------------------------------------------------------------------------------------------------------
# Refusals: argument as typed, rule, value
# ----------------------------------------------------------------------------------------------------------------------
BAD = [
    ({"rho": -0.1}, ValueError, r"`sharpness_aware_grad\(rho=\.\.\.\)` must be a finite number >= 0, got -0\.1\."),
    (
        {"rho": float("nan")},
        ValueError,
        r"`sharpness_aware_grad\(rho=\.\.\.\)` must be a finite number >= 0, got nan\.",
    ),
    (
        {"rho": float("inf")},
        ValueError,
        r"`sharpness_aware_grad\(rho=\.\.\.\)` must be a finite number >= 0, got inf\.",
    ),
    ({"rho": "0.1"}, TypeError, r"`sharpness_aware_grad\(rho=\.\.\.\)` must be a number >= 0, got '0\.1'\."),
    ({"rho": None}, TypeError, r"`sharpness_aware_grad\(rho=\.\.\.\)` must be a number >= 0, got None\."),
    ({"rho": True}, TypeError, r"`sharpness_aware_grad\(rho=\.\.\.\)` must be a number >= 0, got True\."),
    ({"variant": "msam"}, ValueError, r"variant` must be one of sam, asam.*got 'msam'"),
    ({"variant": "none"}, ValueError, r"variant` must be one of sam, asam.*got 'none'"),
    ({"variant_kwargs": {"eta": 1}}, ValueError, r"variant_kwargs` for 'sam' has no option 'eta'"),
    ({"variant": "asam", "variant_kwargs": {"eta": -1}}, ValueError, r"`ASAM\(eta=\.\.\.\)`.*>= 0, got -1"),
    (
        {"variant": ASAM(), "variant_kwargs": {"eta": 1}},
        ValueError,
        r"`variant_kwargs` goes with .*name, got \{'eta': 1\}",
    ),
]


NAMES = [re.sub(" at 0x[0-9a-f]+", "", str(bad[0])) for bad in BAD]


@pytest.mark.parametrize(("kwargs", "error", "message"), BAD, ids=NAMES)
def test_a_bad_argument_is_named_with_its_rule_and_value(kwargs: dict[str, Any], error: type, message: str) -> None:
    model, x, calls = Classifier(), torch.randn(16, 5), []

    def closure() -> Tensor:
        calls.append(1)
        return square_closure(model, x)()

    with pytest.raises(error, match=message):
        sharpness_aware_grad(closure, model.parameters(), **kwargs)
    assert not calls


@pytest.mark.parametrize("kwargs", [{"variant": "msam"}, {"variant_kwargs": {"eta": 1}}])
def test_a_bad_variant_is_named_as_typed(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(?<!sam_)variant") as caught:
        sharpness_aware_grad(lambda: None, Classifier().parameters(), **kwargs)
    assert "sam_variant" not in str(caught.value)


def test_a_single_tensor_is_not_an_iterable_of_parameters() -> None:
    w = nn.Parameter(torch.ones(3))
    with pytest.raises(TypeError, match=r"`parameters` must be an iterable of tensors"):
        sharpness_aware_grad(backward_closure(lambda: w.sum()), w)


@pytest.mark.parametrize("parameters", [[], [torch.ones(3)], [nn.Parameter(torch.ones(3), requires_grad=False)]])
def test_parameters_without_one_to_train_are_refused(parameters: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="`parameters` holds no tensor that requires a gradient"):
        sharpness_aware_grad(lambda: torch.ones(()), parameters)


def test_a_loss_that_reaches_no_parameter_is_an_error() -> None:
    model, other = Classifier(), nn.Linear(5, 1)
    with pytest.raises(RuntimeError, match="does the loss depend on the parameters given"):
        sharpness_aware_grad(square_closure(other, torch.randn(4, 5)), model.parameters())


def test_sparse_gradients_are_refused_with_the_way_out() -> None:
    embedding = nn.Embedding(10, 4, sparse=True)
    before = bits(embedding.parameters())
    with pytest.raises(NotImplementedError, match="sparse=False"):
        sharpness_aware_grad(square_closure(embedding, torch.tensor([1, 2])), embedding.parameters())
    assert same_bits(bits(embedding.parameters()), before)
