# SPDX-License-Identifier: Apache-2.0
"""How many operations does a step start on an accelerator beside its passes? Each costs a launch, whatever its size."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_sam import ASAM, GSAM, SAM, FriendlySAM, LookSAM, Momentum, Variant
from hf_sam.radius.auto import PATIENCE, Auto
from hf_sam.step.gradient_mixing import GradientMixing
from hf_sam.step.one_pass import one_pass_step
from hf_sam.step.two_pass import two_pass_step
from hf_sam.step_context import StepContext

TENSORS, MOST = 400, 50
FREE = (
    "detach",
    "view",
    "split",
    "unbind",
    "empty",
    "alias",
    "_unsafe_view",
    "reshape",
    "flatten",
    "as_strided",
    "promote_types",
    "scalar_tensor",
)
"""Operations that start nothing on a device, but for those that are views by their schema."""


class Launches(TorchDispatchMode):
    """Counts operations that start work on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and not name.startswith(FREE):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def params() -> list[Tensor]:
    """400 tensors on a device without memory, which takes the ways of an accelerator."""
    shapes = [(8, 4), (4,)] * (TENSORS // 2)
    found = [nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    for p in found:
        p.grad = torch.empty_like(p)
    return list(found)


def count(params: list[Tensor], variant: Variant, mixing: GradientMixing | None = None) -> Counter[str]:
    grads = [torch.empty_like(p) for p in params]

    def evaluate() -> None:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad

    options = {} if mixing is None else {"mixing": mixing}
    two_pass_step(evaluate, params, variant, rho=0.1, measured=False, **options)  # makes what the variant keeps
    with Launches() as launches:
        two_pass_step(evaluate, params, variant, rho=0.1, measured=False, **options)
    return launches.counts


@pytest.mark.parametrize("variant", [SAM(), ASAM(), ASAM(eta=0), GSAM(), FriendlySAM()], ids=lambda v: type(v).__name__)
def test_a_step_of_two_passes_starts_few_operations(variant: Variant, params: list[Tensor]) -> None:
    counts = count(params, variant)
    assert counts.total() <= MOST, counts


@pytest.mark.parametrize("mixing", [GradientMixing(weight=0.5), GradientMixing(renormalise=True)], ids=str)
def test_so_does_the_mixing_of_gradients(mixing: GradientMixing, params: list[Tensor]) -> None:
    counts = count(params, SAM(), mixing)
    assert counts.total() <= MOST, counts


def test_so_do_the_steps_of_one_that_perturbs_at_every_fifth(params: list[Tensor]) -> None:
    variant = LookSAM(k=5)
    perturbed = count(params, variant).total()
    with Launches() as launches:
        variant.reuse_(params, [p.grad for p in params if p.grad is not None])
    assert (perturbed + 4 * launches.counts.total()) / 5 <= MOST


@pytest.mark.parametrize("adaptive", [False, True])
def test_so_does_a_step_of_one_pass(adaptive: bool, params: list[Tensor]) -> None:
    optimizer = torch.optim.AdamW(params)
    for p in params:
        optimizer.state[p] = {"exp_avg": torch.empty_like(p)}
    with Launches() as launches:
        context = StepContext(optimizer=optimizer)
        one_pass_step(lambda: None, params, Momentum(adaptive=adaptive), rho=0.1, context=context, measured=False)
    assert launches.counts.total() <= MOST, launches.counts


def perturbing(radius: Auto) -> Auto:
    """Bring it, on the device, to half of the first loss, in the third pass over the data."""
    known: dict[str, Any] = {"steps": PATIENCE, "patience": PATIENCE, "idle": False}
    known |= {"losses": torch.tensor([2.0, 1.0, 0.0]), "memorisation_pass": 2, "memorisation_second_half": 5}
    radius.load_state_dict({**radius.state_dict(), **known})
    radius.observe(torch.ones((), device="meta"), None)
    return radius


@pytest.mark.parametrize("variant", [SAM(), ASAM(), Momentum()], ids=lambda v: type(v).__name__)
def test_so_does_a_step_with_the_radius_that_users_get_by_default(variant: Variant, params: list[Tensor]) -> None:
    """Its size of the weights along the gradient, what it makes of the losses, and the step itself."""
    optimizer, grads = torch.optim.AdamW(params), [torch.empty_like(p) for p in params]
    for p in params:
        optimizer.state[p] = {"exp_avg": torch.empty_like(p)}

    def evaluate() -> None:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad

    radius = perturbing(Auto(variant.auto_strength, scale_free=variant.scale_free))
    context = StepContext(step=100, steps=1000, passes=2.8, optimizer=optimizer)
    loss = torch.ones((), device="meta")
    with Launches() as launches:
        radius.note(context)
        assert isinstance(radius.at(context), Tensor)
        rho = lambda moved, seen: radius.from_gradient(moved, seen, 1.0)  # noqa: E731
        if isinstance(variant, Momentum):
            one_pass_step(evaluate, params, variant, rho=rho, context=context, measured=False)
        else:
            two_pass_step(evaluate, params, variant, rho=rho, measured=False)
        radius.observe(loss, None)
    assert launches.counts.total() <= MOST, launches.counts
