# SPDX-License-Identifier: Apache-2.0
"""Does a step of one pass come back whatever happens, tell what it did, and cost little?"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hf_sam.step.measurement
import hf_sam.step.one_pass
import hf_sam.step.perturbation
import hf_sam.variants.momentum
import hf_sam.vectors.vectors
from hf_sam.step.one_pass import one_pass_step
from hf_sam.step_context import StepContext
from hf_sam.variants.base import Length, OnePass
from hf_sam.variants.momentum import Momentum
from hf_sam.vectors.stochastic_rounding import StochasticRounding
from hf_sam.vectors.vectors import Ascent, along, global_norm, snapshot
from tests.compare import bits, relative_error, same_bits
from tests.small_models import Classifier, Tied, square_closure
from tests.step.test_cost import Memory

RHO = 0.3
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])


class Stop(Exception):
    """Raised on purpose."""


class Up(OnePass):
    """Every weight the same way up; not before step 1."""

    title = "Up"
    citation = ""

    def direction_before_pass(
        self, params: list[Tensor], rho: Length, context: StepContext
    ) -> tuple[list[Tensor], Ascent] | None:
        if context.step == 0:
            return None
        ones = [torch.ones_like(p) for p in params]
        return params, along(ones, rho, global_norm(ones, params))


def ahead(evaluate: Callable[[], object], model: nn.Module, **options: Any) -> Any:
    options = {"rho": RHO, "context": StepContext(step=1), **options}
    return one_pass_step(evaluate, list(model.parameters()), options.pop("direction", Up()), **options)


# ----------------------------------------------------------------------------------------------------------------------
# There and back
# ----------------------------------------------------------------------------------------------------------------------
def test_the_gradient_is_the_one_at_the_perturbed_weights() -> None:
    model, x = Classifier().double(), torch.randn(16, 5, dtype=torch.float64)
    n = sum(p.numel() for p in model.parameters())
    ahead(square_closure(model, x), model)
    found = snapshot([p.grad for p in model.parameters()])
    model.zero_grad()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(RHO / math.sqrt(n))
    square_closure(model, x)()
    assert relative_error(found, [p.grad for p in model.parameters()]) < 1e-13


def test_gradients_of_earlier_micro_batches_stay() -> None:
    model, x = Classifier(), torch.randn(16, 5)
    once = Classifier()
    once.load_state_dict(model.state_dict())
    ahead(square_closure(once, x), once)
    for _ in range(2):
        ahead(square_closure(model, x), model)
    doubled = [2 * p.grad for p in once.parameters()]
    assert same_bits(bits(p.grad for p in model.parameters()), bits(doubled))


STOPS = [Stop, torch.OutOfMemoryError, KeyboardInterrupt, SystemExit]


@pytest.mark.parametrize("stop", [None, *STOPS])
@every_dtype
def test_restores_exact_bits_whatever_the_pass_raises(dtype: torch.dtype, stop: type[BaseException] | None) -> None:
    model, x = Classifier().to(dtype), torch.randn(16, 5, dtype=dtype)
    before = bits(model.parameters())

    def evaluate() -> None:
        assert not same_bits(bits(model.parameters()), before)
        square_closure(model, x)()
        if stop is not None:
            raise stop

    if stop is None:
        ahead(evaluate, model)
    else:
        with pytest.raises(stop):
            ahead(evaluate, model)
    assert same_bits(bits(model.parameters()), before)


def test_restores_exact_bits_when_the_pass_itself_changed_the_weights() -> None:
    model = Classifier()
    before = bits(model.parameters())
    ahead(lambda: model.first.weight.data.fill_(float("nan")), model)
    assert same_bits(bits(model.parameters()), before)


def test_restores_exact_bits_of_tied_parameters_negative_zeros_and_subnormals() -> None:
    model = Tied()
    with torch.no_grad():
        model.embed.weight[0] = torch.tensor([-0.0, 1e-45, -1e-40, 3.4e38])
    before = bits(model.parameters())
    ahead(square_closure(model, torch.randint(0, 6, (8,))), model)
    assert same_bits(bits(model.parameters()), before)
    assert model.out.weight is model.embed.weight


def test_an_error_of_the_direction_comes_before_anything_moves() -> None:
    model, calls = Classifier(), []
    before = bits(model.parameters())
    with pytest.raises(ValueError, match="there is no optimizer"):
        ahead(lambda: calls.append(1), model, direction=Momentum())
    assert not calls
    assert same_bits(bits(model.parameters()), before)


def test_tensors_that_are_not_trained_can_move() -> None:
    """Flat-LoRA moves frozen weights."""

    class Elsewhere(Up):
        def direction_before_pass(
            self, params: list[Tensor], rho: Length, context: StepContext
        ) -> tuple[list[Tensor], Ascent]:
            return super().direction_before_pass([frozen], rho, context)

    model, frozen = Classifier(), torch.randn(4, 3)
    before, there = bits([frozen, *model.parameters()]), []
    report = ahead(lambda: there.extend(bits([frozen, *model.parameters()])), model, direction=Elsewhere())
    assert not torch.equal(there[0], before[0])
    assert same_bits(there[1:], before[1:])
    assert same_bits(bits([frozen]), before[:1])
    assert report.epsilon_norm.item() == pytest.approx(RHO, rel=1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# Ctrl-C, at any line of ours
# ----------------------------------------------------------------------------------------------------------------------
MODULES = (
    hf_sam.step.one_pass,
    hf_sam.step.perturbation,
    hf_sam.vectors.vectors,
    hf_sam.step.measurement,
    hf_sam.variants.momentum,
)
OURS = {module.__file__ for module in MODULES}


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one that lands in a generator's end
def test_restores_exact_bits_wherever_an_interrupt_lands() -> None:
    model, x = Classifier(2, 2, 2), torch.randn(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    square_closure(model, x)()
    optimizer.step()
    kept = [*model.parameters(), *(s["exp_avg"] for s in optimizer.state.values())]
    before, lost = bits(kept), {}
    for context in itertools.count(1):
        try:
            with interrupt_at(context) as seen:
                ahead(square_closure(model, x), model, direction=Momentum(), context=StepContext(optimizer=optimizer))
        except KeyboardInterrupt:
            pass
        if len(seen) < context:
            break
        if not same_bits(bits(kept), before):
            lost[context] = seen[-1]
            for p, b in zip(kept, before, strict=True):
                p.data.copy_(b.view(p.dtype))
    assert lost == {}
    assert context > 50


def test_restores_exact_bits_when_an_interrupt_lands_in_the_way_back_from_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, copy, calls = Classifier(), torch._foreach_copy_, []
    before = bits(model.parameters())

    def interrupted(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        copy(*args)

    def fail() -> None:
        monkeypatch.setattr(torch, "_foreach_copy_", interrupted)
        raise Stop

    with pytest.raises(KeyboardInterrupt):
        ahead(fail, model)
    assert same_bits(bits(model.parameters()), before)


# ----------------------------------------------------------------------------------------------------------------------
# What it tells
# ----------------------------------------------------------------------------------------------------------------------
def test_the_report_says_what_really_moved() -> None:
    model = Classifier()
    report = ahead(lambda: None, model)
    assert report.usable
    assert report.epsilon_norm.item() == pytest.approx(RHO, rel=1e-6)
    assert report.grad_cosine is None
    assert report.asked_norm is None
    assert report.rho == RHO


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_tell_what_was_asked_for_too(dtype: torch.dtype) -> None:
    model, there = Classifier().to(dtype), []
    start = snapshot(list(model.parameters()))
    report = ahead(lambda: there.extend(snapshot(list(model.parameters()))), model, rho=3e-3)
    moved = [(a.double() - b.double()) for a, b in zip(there, start, strict=True)]
    assert report.asked_norm.item() == pytest.approx(3e-3, rel=1e-3)
    assert report.epsilon_norm.item() == pytest.approx(global_norm(moved).item(), rel=1e-2)
    assert report.epsilon_norm.item() != pytest.approx(3e-3, rel=1e-2)  # so coarse are they


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_can_be_rounded_by_chance(dtype: torch.dtype) -> None:
    model, found = Classifier(40, 50, 30).to(dtype), []
    before = bits(model.parameters())
    for seed in (None, 0, 0, 1):
        rounding = None if seed is None else StochasticRounding(seed)
        ahead(lambda: found.append(bits(model.parameters())), model, rho=1e-2, rounding=rounding)
        assert same_bits(bits(model.parameters()), before)
    nearest, first, again, other = found
    assert same_bits(first, again)
    assert not same_bits(first, other)
    assert not same_bits(first, nearest)


def test_a_direction_that_does_not_know_its_way_leaves_a_plain_pass_and_no_report() -> None:
    model, x = Classifier(), torch.randn(16, 5)
    square_closure(model, x)()
    expected = bits(p.grad for p in model.parameters())
    model.zero_grad()
    assert ahead(square_closure(model, x), model, context=StepContext(step=0)) is None
    assert same_bits(bits(p.grad for p in model.parameters()), expected)


def test_a_radius_of_zero_moves_nothing() -> None:
    model = Classifier()
    before, there = bits(model.parameters()), []
    report = ahead(lambda: there.extend(bits(model.parameters())), model, rho=0.0)
    assert same_bits(there, before)
    assert report.usable
    assert report.epsilon_norm == 0


def test_a_radius_may_be_a_tensor() -> None:
    report = ahead(lambda: None, Classifier(), rho=torch.tensor(0.5))
    assert report.epsilon_norm.item() == pytest.approx(0.5, rel=1e-6)


def test_an_outer_autocast_context_keeps_no_casts_of_other_weights() -> None:
    model, x, there = Classifier(), torch.randn(4, 5), []
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        ahead(lambda: there.append(model(x)), model, rho=3.0)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(x)
        ahead(lambda: there.append(model(x)), model, rho=3.0)
        after = model(x)
    assert torch.equal(there[1], there[0])
    assert not torch.equal(there[1], before)
    assert torch.equal(after, before)


# ----------------------------------------------------------------------------------------------------------------------
# What it costs
# ----------------------------------------------------------------------------------------------------------------------
class Traffic(TorchDispatchMode):
    """Count the bytes of what operations take and return, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.bytes += sum(t.nbytes for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor))
        return out


class LargeStep:
    """A pass over weights that dwarf everything else, after a first step of the optimizer; in units of their size."""

    def __init__(self, device: str, adaptive: bool) -> None:
        w = [nn.Parameter(torch.randn(400, 400, device=device)) for _ in range(20)]
        size = sum(p.nbytes for p in w)
        optimizer = torch.optim.AdamW(w)
        for p in w:
            optimizer.state[p] = {"exp_avg": torch.ones_like(p)}
        state = [s["exp_avg"] for s in optimizer.state.values()]
        during: list[float] = []
        with Memory(leave_out=[*w, *state] if device == "cpu" else []) as memory:
            context, direction = StepContext(optimizer=optimizer), Momentum(adaptive=adaptive)
            step = lambda: one_pass_step(  # noqa: E731
                lambda: during.append(memory.live() / size),
                w,
                direction,
                rho=torch.tensor(RHO, device=device),
                context=context,
            )
            step()
            self.after, self.peak = memory.live() / size, memory.peak / size
        self.during = during[0]
        with Traffic() as traffic:
            step()
        self.traffic = traffic.bytes / size


def test_a_pass_holds_one_copy_of_the_weights() -> None:
    step = LargeStep("cpu", adaptive=False)
    assert step.during == pytest.approx(1, abs=0.01)
    assert step.after == pytest.approx(0, abs=0.01)
    assert step.peak <= 1.1


def test_the_adaptive_form_holds_a_copy_of_the_moment_until_the_pass_begins() -> None:
    step = LargeStep("cpu", adaptive=True)
    assert step.during == pytest.approx(1, abs=0.01)
    assert step.peak <= 2.1


@pytest.mark.parametrize(("device", "passes"), [("cpu", 12.01), ("meta", 18.01)])
def test_a_step_touches_the_weights_this_often(device: str, passes: float) -> None:
    """AdamW's own step counts 14. An accelerator is meta here.

    Three of them are the copy, whose target is counted as read and as returned too. An accelerator lays the moment out
    as one vector, to scale it in few launches.
    """
    assert LargeStep(device, adaptive=False).traffic <= passes


@pytest.mark.gpu
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_on_a_gpu_never_synchronises(dtype: torch.dtype, adaptive: bool) -> None:
    model, x = Classifier().to("cuda", dtype), torch.randn(16, 5, device="cuda", dtype=dtype)
    optimizer = torch.optim.AdamW(model.parameters(), capturable=True)
    square_closure(model, x)()
    optimizer.step()
    before = bits([*model.parameters(), *(s["exp_avg"] for s in optimizer.state.values())])
    options = {"direction": Momentum(adaptive=adaptive), "context": StepContext(optimizer=optimizer)}
    ahead(square_closure(model, x), model, **options)  # the first call compiles and allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        ahead(square_closure(model, x), model, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert same_bits(bits([*model.parameters(), *(s["exp_avg"] for s in optimizer.state.values())]), before)
