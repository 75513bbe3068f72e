# SPDX-License-Identifier: Apache-2.0
"""Do the directions that need to know where in the run they are work in a loop written by hand?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hf_sam
from hf_sam import VARIANTS, functional, sharpness_aware_grad
from hf_sam.step_context import StepContext
from hf_sam.variants import Variant, make_variant
from hf_sam.vectors.vectors import global_norm
from tests.compare import bits, relative_error, same_bits
from tests.reference import methods_numpy, msam_numpy, sam_numpy
from tests.small_models import Branches, Classifier, backward_closure, square_closure
from tests.step.test_two_pass import OPTIMIZERS, RHO, batches, classifier, closures
from tests.tolerances import RELATIVE

MomentOf = Callable[[int, Any], StepContext]


def by_step(step: int, optimizer: Any) -> StepContext:
    return StepContext(step=step)


def by_optimizer(step: int, optimizer: Any) -> StepContext:
    return StepContext(optimizer=optimizer)


class Watched:
    """A closure that counts its calls and notes the weights at each."""

    def __init__(self, params: list[Tensor], closure: Callable[[], Tensor]) -> None:
        self.params, self.closure, self.there = params, closure, []

    def __call__(self) -> Tensor:
        self.there.append([p.detach().clone() for p in self.params])
        return self.closure()


def our_run(optimizer: Any, variant: str | Variant, context: MomentOf) -> tuple[Classifier, list[float], list[int]]:
    """Return the model after twenty steps, the losses, and how often each step called the closure."""
    model, losses, calls = classifier(torch.float64), [], []
    optimizer = optimizer(model.parameters())
    for step, closure in enumerate(closures(model)):
        watched = Watched(list(model.parameters()), closure)
        where = context(step, optimizer)
        loss = sharpness_aware_grad(watched, model.named_parameters(), rho=RHO, variant=variant, context=where)
        losses.append(loss.item())
        calls.append(len(watched.there))
        optimizer.step()
    return model, losses, calls


def assert_equals(model: nn.Module, losses: list[float], w: sam_numpy.Arrays, expected_losses: list[float]) -> None:
    np.testing.assert_allclose(losses, expected_losses, rtol=RELATIVE[torch.float64])
    weights = dict(model.named_parameters())
    expected = [torch.from_numpy(w[k]) for k in weights]
    assert relative_error(list(weights.values()), expected) < RELATIVE[torch.float64]


# ----------------------------------------------------------------------------------------------------------------------
# LookSAM
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("k", "alpha"), [(5, 0.1), (3, 0.7), (1, 0.7)])
def test_looksam_is_the_papers_over_twenty_steps(k: int, alpha: float, optimizer: str) -> None:
    theirs, ours = OPTIMIZERS[optimizer]
    w, look, theirs = sam_numpy.new_weights(np.random.default_rng(0)), methods_numpy.LookSAM(k, alpha), theirs()
    expected = [look.step(w, x, y, RHO, theirs) for x, y in batches()]
    model, losses, calls = our_run(ours, make_variant("looksam", {"k": k, "alpha": alpha}), by_step)
    assert_equals(model, losses, w, expected)
    assert calls == [2 if step % k == 0 else 1 for step in range(20)]


def test_looksam_without_a_moment_is_sam_at_every_call() -> None:
    """Nobody says which step it is, so every one is the first of its kind."""
    ours = OPTIMIZERS["sgd"][1]
    look, losses, calls = our_run(ours, make_variant("looksam"), lambda step, optimizer: None)
    sam, sam_losses, _ = our_run(ours, "sam", by_step)
    assert (calls, losses) == ([2] * 20, sam_losses)
    assert same_bits(bits(look.parameters()), bits(sam.parameters()))


@pytest.mark.parametrize("variant", ["looksam", "friendly"])
@pytest.mark.parametrize("context", [None, StepContext(), StepContext(step=5)])
def test_a_name_cannot_take_up_what_an_earlier_call_left(variant: str, context: StepContext | None) -> None:
    model = Classifier()
    closure = Watched(list(model.parameters()), square_closure(model, torch.randn(4, 5)))
    with pytest.raises(
        ValueError, match=rf"`variant='{variant}'` takes up what an earlier step left, .* hf_sam\.VARIANTS"
    ):
        sharpness_aware_grad(closure, model.parameters(), variant=variant, context=context)
    assert not closure.there


def test_a_step_between_leaves_buffers_random_numbers_and_parameters_without_a_gradient_as_one_pass_does() -> None:
    def run(step: int | None) -> tuple[list[Tensor], Tensor, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
        unused = nn.Parameter(torch.ones(2))
        closure, params = square_closure(model, torch.randn(6, 4)), [*model.parameters(), unused]
        direction = make_variant("looksam")
        if step is None:
            loss = closure()
        else:
            where = {"context": StepContext(step=step), "buffers": model.buffers()}
            loss = sharpness_aware_grad(closure, params, rho=RHO, variant=direction, **where)
        assert unused.grad is None
        return bits([*model.buffers(), *(p.grad for p in model.parameters())]), loss.detach(), torch.rand(3)

    for mine, plain in zip(run(3), run(None), strict=True):
        assert same_bits(mine, plain) if isinstance(mine, list) else torch.equal(mine, plain)


def test_a_branch_that_is_not_taken_in_a_step_between_is_left_out() -> None:
    model, x, look = (
        Branches([{"left", "right"}, {"left", "right"}, {"left"}]),
        torch.randn(3, 4),
        make_variant("looksam"),
    )
    for step in range(2):
        closure = square_closure(model, x)
        sharpness_aware_grad(closure, model.named_parameters(), rho=RHO, variant=look, context=StepContext(step=step))
    assert model.right.weight.grad is None
    assert model.left.weight.grad is not None


@pytest.mark.parametrize("step", [0, 1])
def test_a_loss_of_other_parameters_is_refused(step: int) -> None:
    model, other = Classifier(), torch.ones(2, requires_grad=True)
    context, look = StepContext(step=step), make_variant("looksam")
    with pytest.raises(RuntimeError, match="No parameter received a gradient"):
        sharpness_aware_grad(backward_closure(other.sum), model.parameters(), variant=look, context=context)


# ----------------------------------------------------------------------------------------------------------------------
# One pass
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("adaptive", [False, True])
def test_momentum_is_the_papers_over_twenty_steps(adaptive: bool, optimizer: str) -> None:
    theirs, ours = OPTIMIZERS[optimizer]
    w, theirs = sam_numpy.new_weights(np.random.default_rng(0)), theirs()
    expected = [msam_numpy.msam_step(w, x, y, RHO, theirs, adaptive=adaptive) for x, y in batches()]
    model, losses, calls = our_run(ours, make_variant("momentum", {"adaptive": adaptive}), by_optimizer)
    assert_equals(model, losses, w, expected)
    assert calls == [1] * 20
    by_name, *_ = our_run(ours, "momentum", by_optimizer)
    assert same_bits(bits(by_name.parameters()), bits(model.parameters())) != adaptive


@pytest.mark.parametrize("context", [None, StepContext(step=3)])
def test_momentum_asks_for_the_optimizer(context: StepContext | None) -> None:
    model = Classifier()
    closure = Watched(list(model.parameters()), square_closure(model, torch.randn(4, 5)))
    with pytest.raises(ValueError, match=r"needs an optimizer that keeps one.*there is no optimizer"):
        sharpness_aware_grad(closure, model.parameters(), variant="momentum", context=context)
    assert not closure.there


def random_step(context: StepContext | None, rho: float = RHO, **options: Any) -> tuple[list[Tensor], Any]:
    """Return where the pass went from a Classifier that is always the same, and the watched closure."""
    torch.manual_seed(0)
    model = Classifier().double()
    x = torch.randn(4, 5, dtype=torch.float64)
    watched = Watched(list(model.parameters()), square_closure(model, x))
    before = [p.detach().clone() for p in model.parameters()]
    loss = sharpness_aware_grad(watched, model.parameters(), rho=rho, variant="random", context=context, **options)
    assert len(watched.there) == 1
    assert same_bits(bits(model.parameters()), bits(before))
    epsilon = [there - w for there, w in zip(watched.there[0], before, strict=True)]
    with torch.no_grad():
        for p, there in zip(model.parameters(), watched.there[0], strict=True):
            p.copy_(there)
    h = [p.grad for p in model.parameters()]
    model.zero_grad()
    assert square_closure(model, x)().item() == loss.item()
    assert same_bits(bits(p.grad for p in model.parameters()), bits(h))
    return epsilon, watched


def test_a_random_step_is_one_pass_at_the_perturbed_weights_and_returns_its_loss() -> None:
    epsilon, _ = random_step(StepContext(step=4))
    assert global_norm(epsilon).item() == pytest.approx(RHO, rel=RELATIVE[torch.float64])


def test_a_random_step_is_the_same_at_the_same_moment_and_another_at_each_other() -> None:
    contexts = [StepContext(step=4), StepContext(step=5), StepContext(step=4, seed=1)]
    found = [bits(random_step(context)[0]) for context in contexts]
    for context, there in zip(contexts, found, strict=True):
        assert same_bits(bits(random_step(context)[0]), there)
    assert not any(same_bits(a, b) for i, a in enumerate(found) for b in found[:i])


def test_without_a_moment_every_call_goes_elsewhere() -> None:
    found = [bits(random_step(None)[0]) for _ in range(3)]
    assert not any(same_bits(a, b) for i, a in enumerate(found) for b in found[:i])


def test_a_radius_of_zero_goes_nowhere() -> None:
    epsilon, _ = random_step(StepContext(step=4), rho=0.0)
    assert all((e == 0).all() for e in epsilon)


def test_one_pass_draws_what_one_call_draws_and_drops_earlier_gradients() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)), torch.randn(6, 4)
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.nan)
    torch.manual_seed(1)
    sharpness_aware_grad(
        square_closure(model, x), model.parameters(), variant="random", context=StepContext(), buffers=model.buffers()
    )
    after = torch.rand(3)
    assert model[1].num_batches_tracked == 1
    assert all(p.grad.isfinite().all() for p in model.parameters())
    torch.manual_seed(1)
    model(x)
    assert torch.equal(torch.rand(3), after)


def test_only_what_is_trained_moves() -> None:
    model = Classifier()
    model.first.requires_grad_(False)
    watched = Watched(list(model.parameters()), square_closure(model, torch.randn(4, 5)))
    sharpness_aware_grad(watched, model.parameters(), rho=RHO, variant="random", context=StepContext(step=1))
    moved = [not torch.equal(a, b) for a, b in zip(watched.there[0], model.parameters(), strict=True)]
    assert moved == [p.requires_grad for p in model.parameters()]


def test_16_bits_are_rounded_by_the_generator_that_was_given() -> None:
    def step(seed: int) -> list[Tensor]:
        torch.manual_seed(0)
        model = Classifier().bfloat16()
        watched = Watched(list(model.parameters()), square_closure(model, torch.randn(4, 5, dtype=torch.bfloat16)))
        options = {"rounding": torch.Generator().manual_seed(seed), "context": StepContext(step=1)}
        sharpness_aware_grad(watched, model.parameters(), rho=1e-3, variant="random", **options)
        return bits(watched.there[0])

    assert same_bits(step(0), step(0))
    assert not same_bits(step(0), step(1))


@pytest.mark.parametrize("variant", ["random", "momentum", "looksam"])
@pytest.mark.parametrize("step", [0, 1])
def test_the_weights_come_back_when_the_closure_raises(variant: str, step: int) -> None:
    model, x = Classifier(), torch.randn(4, 5)
    optimizer = torch.optim.AdamW(model.parameters())
    square_closure(model, x)()
    optimizer.step()
    before = bits(model.parameters())

    def closure() -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sharpness_aware_grad(
            closure,
            model.parameters(),
            variant=VARIANTS[variant](),
            context=StepContext(step=step, optimizer=optimizer),
        )
    assert same_bits(bits(model.parameters()), before)


@pytest.mark.parametrize("variant", [name for name, v in VARIANTS.items() if v.passes == "plain"])
def test_what_acts_on_a_models_adapters_is_refused(variant: str) -> None:
    model = Classifier()
    with pytest.raises(NotImplementedError, match=r"acts on a model's adapters between passes: use SAMTrainer"):
        sharpness_aware_grad(
            square_closure(model, torch.randn(4, 5)), model.parameters(), variant=variant, context=StepContext(step=1)
        )


@pytest.mark.parametrize("variant", ["sam", "asam", "gsam"])
def test_other_directions_take_no_notice(variant: str) -> None:
    grads = []
    for context in (None, StepContext(), StepContext(step=7, steps=9, lr=1.0)):
        torch.manual_seed(0)
        model = Classifier()
        sharpness_aware_grad(
            square_closure(model, torch.randn(4, 5)), model.parameters(), rho=RHO, variant=variant, context=context
        )
        grads.append(bits(p.grad for p in model.parameters()))
    assert same_bits(grads[0], grads[1])
    assert same_bits(grads[0], grads[2])


def test_the_former_name_of_the_context_still_imports_and_says_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match=r"hf_sam\.StepContext"):
        assert hf_sam.Moment is StepContext
    with pytest.raises(AttributeError, match="no attribute 'Momentous'"):
        hf_sam.Momentous  # noqa: B018


# ----------------------------------------------------------------------------------------------------------------------
# What else is given for parameters, and by whom gradients and weights are written
# ----------------------------------------------------------------------------------------------------------------------
def small() -> tuple[torch.nn.Module, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    x = torch.randn(5, 3)

    def closure() -> torch.Tensor:
        loss = model(x).square().mean()
        loss.backward()
        return loss

    return model, closure


GIVEN = {
    "model": lambda model: model,
    "groups": lambda model: (
        torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[2].parameters()}]).param_groups
    ),
    "named groups": lambda model: torch.optim.SGD(model.named_parameters(), lr=0.1).param_groups,
    "raw groups": lambda model: [
        {"params": model[0].parameters()},
        {"params": model[2].weight},
        {"params": model[2].bias},
    ],
}


@pytest.mark.parametrize("give", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("variant", ["sam", "asam"])
def test_parameters_come_as_a_model_or_in_groups_too(variant: str, give: Any) -> None:
    found = []
    for form in (lambda model: model.named_parameters(), give):
        model, closure = small()
        sharpness_aware_grad(closure, form(model), rho=0.3, variant=variant)
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


WRONG = {
    "optimizer": (lambda model: torch.optim.SGD(model.parameters()), "give its `param_groups`"),
    "dict": (lambda model: dict(model.named_parameters()), "such as model.parameters.., got a dict"),
    "names": (lambda model: list(dict(model.named_parameters())), "got one with a str"),
    "number": (lambda model: 3, "got a int"),
    "tensor": (lambda model: model[0].weight, "got a Parameter"),
}


@pytest.mark.parametrize(("give", "said"), WRONG.values(), ids=WRONG)
def test_other_parameters_are_refused_with_what_they_are(give: Any, said: str) -> None:
    model, closure = small()
    with pytest.raises(TypeError, match=said):
        sharpness_aware_grad(closure, give(model))


def test_a_loss_in_place_of_the_closure_and_buffers_by_name_are_refused() -> None:
    model, closure = small()
    with pytest.raises(TypeError, match=r"`closure` must be a function .* got a Tensor"):
        sharpness_aware_grad(closure(), model.parameters())
    with pytest.raises(TypeError, match="`buffers` must be an iterable of tensors"):
        sharpness_aware_grad(closure, model.parameters(), buffers=dict(model.named_buffers()))


def test_a_closure_that_steps_is_refused() -> None:
    model, closure = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def stepping() -> torch.Tensor:
        loss = closure()
        optimizer.step()
        return loss

    with pytest.raises(RuntimeError, match="`closure` has changed every parameter, as an optimizer's step does"):
        sharpness_aware_grad(stepping, model.parameters())


@pytest.mark.parametrize("accumulate", [False, True])
def test_gradients_from_before_are_added_to_where_that_is_asked_for(accumulate: bool) -> None:
    model, closure = small()
    sharpness_aware_grad(closure, model.parameters(), rho=0.3)
    alone = [p.grad.clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    sharpness_aware_grad(closure, model.parameters(), rho=0.3, accumulate=accumulate)
    for p, grad in zip(model.parameters(), alone, strict=True):
        torch.testing.assert_close(p.grad, grad + float(accumulate))


def test_gradients_that_are_dropped_are_told_once_unless_they_are_of_an_earlier_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    functional._say_dropped.cache_clear()
    model, closure = small()
    for _ in range(2):
        sharpness_aware_grad(closure, model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    model.zero_grad(set_to_none=False)
    looksam = VARIANTS["looksam"](k=2)
    for step in range(3):
        sharpness_aware_grad(closure, model.parameters(), variant=looksam, context=StepContext(step=step))
    for step in range(2):
        sharpness_aware_grad(closure, model.parameters(), variant="random", context=StepContext(step=step))
    assert not caplog.records
    for _ in range(2):
        model.zero_grad()
        closure()
        sharpness_aware_grad(closure, model.parameters())
    assert [record.getMessage().count("accumulate=True") for record in caplog.records] == [1]


def test_complex_weights_are_refused() -> None:
    w = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    with pytest.raises(NotImplementedError, match=r"hold `parameters\[0\]` as two real numbers"):
        sharpness_aware_grad(lambda: w.abs().sum(), [w])
    assert w.grad is None


@pytest.mark.slow
def test_a_whole_step_can_be_compiled() -> None:
    found = []
    for compiled in (False, True):
        model, closure = small()
        # torch 2.6 compiles the loop over parameters, without foreach, to other bits
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=True)

        def step(closure: Any = closure, model: Any = model, optimizer: Any = optimizer) -> None:
            sharpness_aware_grad(closure, model.parameters(), rho=0.3)
            optimizer.step()

        (torch.compile(step, backend="eager") if compiled else step)()
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
