# SPDX-License-Identifier: Apache-2.0
"""What does a step hold in memory, and does it wait for the device?"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_sam import ASAM, SAM, Variant, sharpness_aware_grad
from hf_sam.step.two_pass import two_pass_step
from hf_sam.vectors.stochastic_rounding import StochasticRounding
from tests.small_models import Classifier, backward_closure, square_closure

every_variant = pytest.mark.parametrize("variant", ["sam", "asam"])


class Memory(TorchDispatchMode):
    """Count the bytes of the storages made while it is on that are still alive, and the most there ever were."""

    def __init__(self, leave_out: list[Tensor]) -> None:
        super().__init__()
        self.left_out = {t.untyped_storage().data_ptr() for t in leave_out}
        self.storages: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in self.left_out:
                storage = leaf.untyped_storage()
                self.storages.setdefault(StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, self.live())
        return out

    def live(self) -> int:
        self.storages = {ref: size for ref, size in self.storages.items() if not ref.expired()}
        return sum(self.storages.values())


class Step:
    """One step over weights that dwarf everything else, in units of their size."""

    def __init__(self, dtype: torch.dtype, step: Callable[..., Any]) -> None:
        w = [nn.Parameter(torch.randn(400, 400, dtype=dtype)) for _ in range(20)]
        size = sum(p.numel() * p.element_size() for p in w)
        x = torch.randn(400, dtype=dtype)
        self.at_call: list[float] = []
        with Memory(leave_out=w) as memory:

            def closure() -> Tensor:
                self.at_call.append(memory.live() / size)
                loss = sum((p @ x).square().sum() for p in w)
                loss.backward()
                return loss.detach()

            step(closure, w)
            self.after, self.peak = memory.live() / size, memory.peak / size


@every_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_second_pass_starts_with_one_extra_copy_of_the_weights(dtype: torch.dtype, variant: str) -> None:
    step = Step(dtype, lambda closure, w: sharpness_aware_grad(closure, w, variant=variant))
    assert step.at_call == pytest.approx([0, 1], abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "extra"), [("sam", 1.05), ("asam", 1.1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_peak_is_one_extra_copy_of_the_weights(dtype: torch.dtype, variant: str, extra: float) -> None:
    """ASAM computes |w| + eta for one weight at a time, here a twentieth of all."""
    plain = Step(dtype, lambda closure, w: closure())
    step = Step(dtype, lambda closure, w: sharpness_aware_grad(closure, w, variant=variant))
    assert plain.peak == pytest.approx(1, abs=0.1)
    assert step.peak <= plain.peak + extra


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_works_on_small_parts(dtype: torch.dtype) -> None:
    """A part of 2^17 elements is a 24th of these weights; of float32 and random bits there are less than six."""
    nearest, chance = (
        Step(dtype, lambda closure, w, rounding=rounding: sharpness_aware_grad(closure, w, rounding=rounding))
        for rounding in ("nearest", "stochastic")
    )
    assert chance.peak <= nearest.peak + 6 * 2 / 24
    assert chance.at_call == nearest.at_call


@pytest.mark.slow
@every_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_only_the_gradient_is_left_after_the_step(dtype: torch.dtype, variant: str) -> None:
    step = Step(dtype, lambda closure, w: sharpness_aware_grad(closure, w, variant=variant))
    assert step.after == pytest.approx(1, abs=0.01)


@every_variant
def test_no_clean_gradient_survives_the_climb(variant: str) -> None:
    model, x = Classifier(), torch.randn(16, 5)
    clean: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def closure() -> Tensor:
        alive.append(sum(ref() is not None for ref in clean))
        loss = square_closure(model, x)()
        clean.extend(weakref.ref(p.grad) for p in model.parameters())
        return loss

    sharpness_aware_grad(closure, model.parameters(), variant=variant)
    assert alive == [0, 0]
    assert len(clean) == 10


# ----------------------------------------------------------------------------------------------------------------------
# Waiting for the device
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("direction", [SAM(), ASAM(), ASAM(eta=0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_needs_no_values_on_the_host(dtype: torch.dtype, direction: Variant) -> None:
    """Meta tensors raise on any read: whatever runs on them runs without waiting for a device."""
    model, x = Classifier().to("meta", dtype), torch.randn(16, 5, device="meta", dtype=dtype)
    closure = square_closure(model, x)
    closure()
    for rounding in (None, StochasticRounding(0)):
        report = two_pass_step(closure, list(model.parameters()), direction, rho=0.05, rounding=rounding)
        assert report.grad_cosine.is_meta
    assert all(p.grad.is_meta for p in model.parameters())


@pytest.mark.gpu
@every_variant
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_on_a_gpu_never_synchronises(dtype: torch.dtype, rounding: str, variant: str) -> None:
    model, x = Classifier().to("cuda", dtype), torch.randn(16, 5, device="cuda", dtype=dtype)
    closure = backward_closure(lambda: model(x).square().mean())
    closure()  # the first call compiles and allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        sharpness_aware_grad(closure, model.parameters(), variant=variant, rounding=rounding)
    finally:
        torch.cuda.set_sync_debug_mode("default")
