# SPDX-License-Identifier: Apache-2.0
"""Do the weights come back to the last bit, whatever happens in the second pass (promise 3)?"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hf_sam.functional
import hf_sam.step.perturbation
import hf_sam.step.two_pass
import hf_sam.vectors.vectors
from hf_sam import sharpness_aware_grad
from tests.compare import bits, same_bits
from tests.small_models import Branches, Classifier, Tied, backward_closure, square_closure

every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
every_variant = pytest.mark.parametrize("variant", ["sam", "asam"])
FULL = {"left", "right"}
USES = [
    pytest.param(uses, id=" then ".join("+".join(sorted(use)) or "none" for use in uses))  # the same in every process
    for uses in itertools.product([FULL, {"left"}, set()], repeat=2)
]


class Stop(Exception):
    """Raised on purpose."""


class Second:
    """Is this the second call? And did the weights move in it? (Else a test of the way back proves nothing.)"""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.calls, self.at_start = model, 0, bits(model.parameters())

    def begins(self) -> bool:
        self.calls += 1
        if self.calls == 2:
            assert not same_bits(bits(self.model.parameters()), self.at_start)
        return self.calls == 2

    def weights_are_back(self) -> bool:
        return self.calls == 2 and same_bits(bits(self.model.parameters()), self.at_start)


@every_variant
@every_dtype
def test_restores_exact_bits_after_a_normal_call(dtype: torch.dtype, variant: str) -> None:
    model, x = Classifier().to(dtype), torch.randn(16, 5, dtype=dtype)
    second = Second(model)

    def closure() -> Tensor:
        second.begins()
        return square_closure(model, x)()

    sharpness_aware_grad(closure, model.parameters(), rho=1.0, variant=variant)
    assert second.weights_are_back()


def stop_before_forward(model: Classifier, x: Tensor) -> None:
    raise Stop


def stop_inside_forward(model: Classifier, x: Tensor) -> None:
    def stop(*args: Any) -> None:
        raise Stop

    handle = model.gain.register_forward_hook(stop)
    try:
        model(x)
    finally:
        handle.remove()


def stop_inside_backward(model: Classifier, x: Tensor) -> None:
    def stop(grad: Tensor) -> None:
        raise Stop

    hidden = model.first(x)
    hidden.register_hook(stop)
    model.second(model.gain(hidden.tanh())).square().mean().backward()


def stop_after_backward(model: Classifier, x: Tensor) -> None:
    square_closure(model, x)()
    raise Stop


def run_out_of_memory(model: Classifier, x: Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def press_ctrl_c(model: Classifier, x: Tensor) -> None:
    raise KeyboardInterrupt


STOPS = [stop_before_forward, stop_inside_forward, stop_inside_backward, stop_after_backward]


@pytest.mark.parametrize("stop", [*STOPS, run_out_of_memory, press_ctrl_c])
@every_dtype
def test_restores_exact_bits_when_second_pass_raises(dtype: torch.dtype, stop: Callable[..., None]) -> None:
    model, x = Classifier().to(dtype), torch.randn(16, 5, dtype=dtype)
    second = Second(model)

    def closure() -> Tensor:
        if second.begins():
            stop(model, x)
        return square_closure(model, x)()

    with pytest.raises((Stop, torch.OutOfMemoryError, KeyboardInterrupt)):
        sharpness_aware_grad(closure, model.parameters(), rho=1.0)
    assert second.weights_are_back()


def test_restores_exact_bits_when_the_closure_itself_changed_the_weights() -> None:
    model, x = Classifier(), torch.randn(16, 5)
    second = Second(model)

    def closure() -> Tensor:
        loss = square_closure(model, x)()
        if second.begins():
            with torch.no_grad():
                model.first.weight.fill_(float("nan"))
        return loss

    sharpness_aware_grad(closure, model.parameters())
    assert second.weights_are_back()


@pytest.mark.parametrize("use", USES, ids=str)
def test_restores_exact_bits_when_the_passes_use_different_parameters(use: tuple[set[str], set[str]]) -> None:
    model, x = Branches(list(use)), torch.randn(8, 4)
    second = Second(model)

    def closure() -> Tensor:
        second.begins()
        return square_closure(model, x)()

    sharpness_aware_grad(closure, model.parameters(), rho=1.0)
    assert second.weights_are_back()


@pytest.mark.parametrize("use", USES, ids=str)
def test_the_gradient_is_of_what_the_second_pass_used(use: tuple[set[str], set[str]]) -> None:
    model, x = Branches(list(use)), torch.randn(8, 4)
    sharpness_aware_grad(square_closure(model, x), model.parameters(), rho=1.0)
    assert {name for name in FULL if getattr(model, name).weight.grad is not None} == use[1]


def test_restores_exact_bits_of_tied_parameters() -> None:
    model, tokens = Tied(), torch.randint(0, 6, (8,))
    second = Second(model)

    def closure() -> Tensor:
        second.begins()
        return square_closure(model, tokens)()

    sharpness_aware_grad(closure, model.parameters(), rho=1.0)
    assert second.weights_are_back()
    assert model.out.weight is model.embed.weight


def test_a_tied_parameter_listed_twice_moves_once() -> None:
    model, tokens = Tied(), torch.randint(0, 6, (8,))
    sharpness_aware_grad(square_closure(model, tokens), model.parameters())
    expected = bits(p.grad for p in model.parameters())
    sharpness_aware_grad(square_closure(model, tokens), [*model.parameters(), model.out.weight])
    assert same_bits(bits(p.grad for p in model.parameters()), expected)


def test_restores_negative_zeros_and_subnormals() -> None:
    w = nn.Parameter(torch.tensor([-0.0, 0.0, 1e-45, -1e-40, 3.4e38, 1.0]))
    before = bits([w])
    sharpness_aware_grad(backward_closure(lambda: (w * torch.arange(1.0, 7)).sum()), [w], rho=1.0)
    assert same_bits(bits([w]), before)


def test_parameters_keep_their_storage() -> None:
    model, x = Classifier(), torch.randn(16, 5)
    before = [(id(p), p.data_ptr()) for p in model.parameters()]
    sharpness_aware_grad(square_closure(model, x), model.parameters())
    assert [(id(p), p.data_ptr()) for p in model.parameters()] == before


# ----------------------------------------------------------------------------------------------------------------------
# Ctrl-C, at any line of ours
# ----------------------------------------------------------------------------------------------------------------------
OURS = {
    hf_sam.functional.__file__,
    hf_sam.step.two_pass.__file__,
    hf_sam.vectors.vectors.__file__,
    hf_sam.step.perturbation.__file__,
}


@contextmanager
def interrupt_at(context: int) -> Iterator[list[str]]:
    """Raise KeyboardInterrupt when the interpreter is about to run the `context`-th call or line of our code."""
    seen: list[str] = []

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in OURS:
            return None
        if event in ("call", "line"):
            seen.append(f"{event} {frame.f_code.co_name}:{frame.f_lineno}")
            if len(seen) == context:
                raise KeyboardInterrupt
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(previous)


def weights_come_back_from(context: int) -> tuple[bool, list[str]]:
    model, x = Classifier(2, 2, 2), torch.randn(3, 2)
    before = bits(model.parameters())
    try:
        with interrupt_at(context) as seen:
            sharpness_aware_grad(square_closure(model, x), model.parameters(), rho=1.0)
    except KeyboardInterrupt:
        pass
    return same_bits(bits(model.parameters()), before), seen


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one that lands in a generator's end
def test_restores_exact_bits_wherever_an_interrupt_lands() -> None:
    back, seen = weights_come_back_from(0)
    assert back
    assert len(seen) > 50
    lost = {}
    for context in range(1, len(seen) + 1):
        back, until = weights_come_back_from(context)
        if not back:
            lost[context] = until[-1]
    assert lost == {}
