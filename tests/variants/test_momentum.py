# SPDX-License-Identifier: Apache-2.0
"""Is `momentum` the paper's Momentum-SAM, for every optimizer with a first moment, and does it refuse the others?"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_optimizer
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from hf_sam.step.one_pass import one_pass_step
from hf_sam.step_context import StepContext
from hf_sam.variants.momentum import Momentum, first_moment, refuse_optimizer
from hf_sam.vectors.shards import Shards, as_shards, local_shard
from hf_sam.vectors.vectors import global_norm, snapshot
from tests.compare import bits, relative_error, same_bits
from tests.distributed.launch import FSDP2_ON_CPU
from tests.looped import looped
from tests.reference import msam_numpy, sam_numpy
from tests.small_models import Branches, Classifier, square_closure
from tests.step.test_two_pass import OPTIMIZERS, batches, classifier, closures
from tests.tolerances import RELATIVE

RHO = 0.3
New = Callable[[list[nn.Parameter]], Any]
both_forms = pytest.mark.parametrize("adaptive", [False, True])


def trained(new: New, dtype: torch.dtype = torch.float32, steps: int = 3, **sizes: int) -> tuple[Classifier, Any]:
    """Return a model and its optimizer after some plain steps."""
    model = Classifier(**sizes).to(dtype)
    optimizer = new(list(model.parameters()))
    for _ in range(steps):
        optimizer.zero_grad()
        square_closure(model, torch.randn(16, model.first.in_features, dtype=dtype))()
        optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def adamw(params: list[nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.01, eps=1e-4, **options)  # an eps that float16 holds


def epsilon_of(model: nn.Module, optimizer: Any, **options: Any) -> list[Tensor]:
    found = Momentum(**options).direction_before_pass(list(model.parameters()), RHO, StepContext(optimizer=optimizer))
    return found[1].epsilon


# ----------------------------------------------------------------------------------------------------------------------
# The paper's algorithm
# ----------------------------------------------------------------------------------------------------------------------
def reference_run(optimizer: Any, adaptive: bool) -> tuple[sam_numpy.Arrays, list[float]]:
    w = sam_numpy.new_weights(np.random.default_rng(0))
    return w, [msam_numpy.msam_step(w, x, y, RHO, optimizer, adaptive=adaptive) for x, y in batches()]


def our_run(new: New, adaptive: bool) -> tuple[dict[str, Tensor], list[float]]:
    model, losses = classifier(torch.float64), []
    params = list(model.parameters())
    optimizer, variant = new(params), Momentum(adaptive=adaptive)
    for step, closure in enumerate(closures(model)):
        optimizer.zero_grad()
        context = StepContext(step=step, optimizer=optimizer)
        one_pass_step(lambda c=closure: losses.append(c().item()), params, variant, rho=RHO, context=context)
        optimizer.step()
    return dict(model.named_parameters()), losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@both_forms
def test_twenty_steps_give_the_weights_and_losses_of_the_reference(adaptive: bool, optimizer: str) -> None:
    theirs, ours = OPTIMIZERS[optimizer]
    expected, expected_losses = reference_run(theirs(), adaptive)
    weights, losses = our_run(ours, adaptive)
    np.testing.assert_allclose(losses, expected_losses, rtol=RELATIVE[torch.float64])
    theirs_in_order = [torch.from_numpy(expected[k]) for k in weights]
    assert relative_error(list(weights.values()), theirs_in_order) < RELATIVE[torch.float64]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_that_stay_perturbed_between_steps_would_be_the_same(optimizer: str) -> None:
    """The paper's algorithm 1 goes back and up again inside of the optimizer's step."""
    theirs, ours = OPTIMIZERS[optimizer]
    kept = msam_numpy.KeptPerturbed(sam_numpy.new_weights(np.random.default_rng(0)), RHO, theirs())
    expected_losses = [kept.step(x, y) for x, y in batches()]
    weights, losses = our_run(ours, adaptive=False)
    np.testing.assert_allclose(losses, expected_losses, rtol=RELATIVE[torch.float64])
    expected = [torch.from_numpy(kept.unperturbed()[k]) for k in weights]
    assert relative_error(list(weights.values()), expected) < RELATIVE[torch.float64]


def test_the_references_runs_differ_by_far_more_than_the_tolerance() -> None:
    adaptive, msam = (reference_run(OPTIMIZERS["adamw"][0](), a)[0]["first.weight"] for a in (True, False))
    plain = sam_numpy.new_weights(np.random.default_rng(0))
    optimizer = OPTIMIZERS["adamw"][0]()
    for x, y in batches():
        optimizer.step(plain, sam_numpy.loss_and_gradient(plain, x, y)[1])
    assert min(abs(a - b).max() for a, b in [(adaptive, msam), (adaptive, plain["first.weight"])]) > 1e-3
    assert abs(msam - plain["first.weight"]).max() > 1e-3


# ----------------------------------------------------------------------------------------------------------------------
# Optimizers that have a first moment
# ----------------------------------------------------------------------------------------------------------------------
KEEPERS: dict[str, tuple[New, str]] = {
    "AdamW": (adamw, "exp_avg"),
    "AdamW one by one": (lambda p: adamw(p, foreach=False), "exp_avg"),
    "AdamW foreach": (lambda p: adamw(p, foreach=True), "exp_avg"),
    "AdamW fused": (lambda p: adamw(p, fused=True), "exp_avg"),
    "AdamW amsgrad": (lambda p: adamw(p, amsgrad=True), "exp_avg"),
    "AdamW maximize": (lambda p: adamw(p, maximize=True), "exp_avg"),
    "Adam": (lambda p: torch.optim.Adam(p, lr=0.01), "exp_avg"),
    "NAdam": (lambda p: torch.optim.NAdam(p, lr=0.01), "exp_avg"),
    "RAdam": (lambda p: torch.optim.RAdam(p, lr=0.01), "exp_avg"),
    "Adamax": (lambda p: torch.optim.Adamax(p, lr=0.01), "exp_avg"),
    "SGD": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "momentum_buffer"),
    "SGD nesterov": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), "momentum_buffer"),
    "SGD fused": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True), "momentum_buffer"),
    "RMSprop": (lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9), "momentum_buffer"),
    "Lion": (lambda p: pytorch_optimizer.Lion(p, lr=0.01), "exp_avg"),
    "Adafactor": (
        lambda p: transformers.Adafactor(p, beta1=0.9, lr=0.01, relative_step=False, scale_parameter=False),
        "exp_avg",
    ),
    "accelerate": (lambda p: Accelerator().prepare_optimizer(adamw(p)), "exp_avg"),
}
every_keeper = pytest.mark.parametrize("keeper", KEEPERS)


@looped
@every_keeper
def test_epsilon_is_against_the_optimizers_own_first_moment(keeper: str) -> None:
    new, key = KEEPERS[keeper]
    model, optimizer = trained(new, torch.float64)
    m = [optimizer.state[p][key] for p in model.parameters()]
    length = sum(x.double().square().sum() for x in m).sqrt()
    expected = [-RHO * x.double() / length for x in m]
    assert relative_error(epsilon_of(model, optimizer), expected) < RELATIVE[torch.float32]  # Adafactor's m is float32


@looped
@every_keeper
@both_forms
def test_a_pass_leaves_the_optimizer_and_the_weights_as_they_are(adaptive: bool, keeper: str) -> None:
    model, optimizer = trained(KEEPERS[keeper][0])
    params, there = list(model.parameters()), []

    def everything() -> list[Tensor]:
        return bits([*params, *(t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t))])

    before = everything()
    context = StepContext(optimizer=optimizer)
    one_pass_step(lambda: there.extend(bits(params)), params, Momentum(adaptive=adaptive), rho=RHO, context=context)
    assert same_bits(everything(), before)
    assert not any(torch.equal(a, b) for a, b in zip(there, before, strict=False))


@both_forms
def test_an_accelerator_reads_the_first_moment_without_changing_it(
    adaptive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meta tensors take the path of an accelerator, and tell what was written by the count of versions."""
    monkeypatch.setattr("hf_sam.vectors.vectors.PARTS", 3)
    model = Classifier().to("meta")
    params = list(model.parameters())
    optimizer = adamw(params)
    for p in params:
        p.grad = torch.empty_like(p)
        optimizer.state[p] = {"exp_avg": torch.empty_like(p), "exp_avg_sq": torch.empty_like(p)}
    versions = [optimizer.state[p]["exp_avg"]._version for p in params]
    start = [p._version for p in params]
    context, variant = StepContext(optimizer=optimizer), Momentum(adaptive=adaptive)
    report = one_pass_step(lambda: None, params, variant, rho=torch.ones((), device="meta"), context=context)
    assert report.epsilon_norm.is_meta
    assert [optimizer.state[p]["exp_avg"]._version for p in params] == versions
    assert all(p._version > v for p, v in zip(params, start, strict=True))


def test_the_length_is_rho_over_all_parameter_groups() -> None:
    groups: New = lambda p: adamw([{"params": p[:2], "lr": 1.0}, {"params": p[2:], "weight_decay": 0.5}])  # noqa: E731
    model, optimizer = trained(groups, torch.float64)
    assert global_norm(epsilon_of(model, optimizer)).item() == pytest.approx(RHO, rel=1e-14)


def test_the_length_is_rho_over_the_chosen_parameters() -> None:
    model, optimizer = trained(adamw, torch.float64)
    chosen = [model.first.weight, model.second.bias]
    moved, ascent = Momentum().direction_before_pass(chosen, RHO, StepContext(optimizer=optimizer))
    assert [id(p) for p in moved] == [id(p) for p in chosen]
    assert global_norm(ascent.epsilon).item() == pytest.approx(RHO, rel=1e-14)


def test_a_resumed_optimizer_gives_the_same_bits() -> None:
    model, optimizer = trained(adamw)
    resumed = adamw(list(model.parameters()))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert same_bits(bits(epsilon_of(model, resumed)), bits(epsilon_of(model, optimizer)))
    assert Momentum().state_dict() == {}


# ----------------------------------------------------------------------------------------------------------------------
# Before the first step, and parameters that had no gradient
# ----------------------------------------------------------------------------------------------------------------------
@looped
@every_keeper
def test_before_the_optimizers_first_step_nothing_moves(keeper: str) -> None:
    model, optimizer = trained(KEEPERS[keeper][0], steps=0)
    assert Momentum().direction_before_pass(list(model.parameters()), RHO, StepContext(optimizer=optimizer)) is None
    assert len(optimizer.state) == 0  # a look at a defaultdict leaves an entry


@pytest.mark.parametrize("new", [adamw, KEEPERS["SGD"][0]])
def test_a_parameter_that_had_no_gradient_stays(new: New) -> None:
    model = Branches([{"left"}] * 2 + [set(), {"left"}])
    params = list(model.parameters())
    optimizer = new(params)
    for _ in range(2):
        square_closure(model, torch.randn(3, 4))()
        optimizer.step()
    before, there = bits(params), []
    context = StepContext(optimizer=optimizer)
    report = one_pass_step(lambda: there.extend(bits(params)), params, Momentum(), rho=RHO, context=context)
    stayed = {n for (n, _), a, b in zip(model.named_parameters(), there, before, strict=True) if torch.equal(a, b)}
    assert stayed == {"right.weight", "right.bias"}
    assert report.epsilon_norm.item() == pytest.approx(RHO, rel=1e-6)
    assert model.right.weight not in optimizer.state


# ----------------------------------------------------------------------------------------------------------------------
# Bad moments
# ----------------------------------------------------------------------------------------------------------------------
@looped
@pytest.mark.parametrize("bad", [0.0, float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@both_forms
def test_a_first_moment_that_is_zero_or_not_finite_moves_nothing(
    adaptive: bool, dtype: torch.dtype, bad: float
) -> None:
    model, optimizer = trained(adamw, dtype)
    params, there = list(model.parameters()), []
    for number, p in enumerate(params):
        if bad == 0 or number == 1:
            optimizer.state[p]["exp_avg"].fill_(bad)
    context = StepContext(optimizer=optimizer)
    variant = Momentum(adaptive=adaptive)
    report = one_pass_step(lambda: there.extend(bits(params)), params, variant, rho=RHO, context=context)
    assert same_bits(there, bits(params))
    assert not report.usable
    assert report.epsilon_norm == 0
    assert not any(e.any() for e in variant.direction_before_pass(params, RHO, context)[1].epsilon)


# ----------------------------------------------------------------------------------------------------------------------
# Through the size of the weights
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("eta", [0.01, 0.5])
def test_the_length_of_the_adaptive_form_seen_through_t_is_rho(eta: float) -> None:
    model, optimizer = trained(adamw, torch.float64)
    t = [p.detach().abs() + eta if p.dim() > 1 else torch.ones_like(p) for p in model.parameters()]
    m = [optimizer.state[p]["exp_avg"] for p in model.parameters()]
    epsilon = epsilon_of(model, optimizer, adaptive=True, eta=eta)
    seen = [e / s for e, s in zip(epsilon, t, strict=True)]
    assert global_norm(seen).item() == pytest.approx(RHO, rel=1e-13)
    direction = [-s.square() * x for s, x in zip(t, m, strict=True)]
    length = global_norm(epsilon) / global_norm(direction)
    assert relative_error(epsilon, [d * length for d in direction]) < RELATIVE[torch.float64]


BAD_OPTIONS = [
    ({"adaptive": 1}, ValueError, r"`Momentum\(adaptive=\.\.\.\)` must be true or false, got 1\."),
    ({"eta": -0.1}, ValueError, r"`Momentum\(eta=\.\.\.\)` must be a finite number >= 0, got -0\.1\."),
    ({"eta": float("nan")}, ValueError, r"`Momentum\(eta=\.\.\.\)` must be a finite number >= 0, got nan\."),
    ({"eta": "0.1"}, TypeError, r"`Momentum\(eta=\.\.\.\)` must be a number >= 0, got '0\.1'\."),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS, ids=[str(b[0]) for b in BAD_OPTIONS])
def test_a_bad_option_is_named_with_its_rule_and_value(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Momentum(**options)


# ----------------------------------------------------------------------------------------------------------------------
# 16 bits
# ----------------------------------------------------------------------------------------------------------------------
def in_float32(model: nn.Module, optimizer: Any) -> None:
    """Keep the first moment in float32 beside weights of 16 bits, and so small that float16 could not hold it."""
    for p in model.parameters():
        optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].float() * 1e-9


@looped
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("change", [lambda *_: None, in_float32], ids=["own dtype", "float32"])
@both_forms
def test_weights_of_16_bits_move_by_what_the_moment_says(
    adaptive: bool, change: Callable[..., None], dtype: torch.dtype
) -> None:
    model, optimizer = trained(adamw, dtype)
    change(model, optimizer)
    params, there, rho = list(model.parameters()), [], 3.0
    exact = Classifier().double()
    exact.load_state_dict(model.state_dict())
    wide = adamw(list(exact.parameters()))
    for p, q in zip(params, exact.parameters(), strict=True):
        wide.state[q]["exp_avg"] = optimizer.state[p]["exp_avg"].double()
    _, ascent = Momentum(adaptive=adaptive).direction_before_pass(
        list(exact.parameters()), rho, StepContext(optimizer=wide)
    )
    expected = [q.detach() + e for q, e in zip(exact.parameters(), ascent.epsilon, strict=True)]
    context = StepContext(optimizer=optimizer)
    report = one_pass_step(
        lambda: there.extend(snapshot(params)), params, Momentum(adaptive=adaptive), rho=rho, context=context
    )
    assert relative_error(there, expected) < 3 * RELATIVE[dtype]
    asked = global_norm(ascent.epsilon).item()
    assert report.asked_norm.item() == pytest.approx(asked, rel=RELATIVE[dtype])
    assert report.epsilon_norm.item() == pytest.approx(asked, rel=3 * RELATIVE[dtype])


# ----------------------------------------------------------------------------------------------------------------------
# Optimizers that have none
# ----------------------------------------------------------------------------------------------------------------------
class AdamW8bit(torch.optim.AdamW):
    """Stands in for the optimizer of this name in bitsandbytes."""


AdamW8bit.__module__ = "bitsandbytes.optim.adamw"

REFUSED_AT_ONCE: dict[str, tuple[New, str]] = {
    "SGD": (lambda p: torch.optim.SGD(p, lr=0.1), "SGD with momentum=0 keeps none"),
    "SGD, one group": (
        lambda p: torch.optim.SGD([{"params": p[:1], "momentum": 0.9}, {"params": p[1:]}], lr=0.1),
        "SGD with momentum=0 keeps none",
    ),
    "RMSprop": (lambda p: torch.optim.RMSprop(p, lr=0.1), "RMSprop with momentum=0 keeps none"),
    "Adagrad": (lambda p: torch.optim.Adagrad(p), "Adagrad keeps none"),
    "Adadelta": (lambda p: torch.optim.Adadelta(p), "Adadelta keeps none"),
    "ASGD": (lambda p: torch.optim.ASGD(p), "ASGD keeps none"),
    "Rprop": (lambda p: torch.optim.Rprop(p), "Rprop keeps none"),
    "LBFGS": (lambda p: torch.optim.LBFGS(p), "LBFGS keeps none"),
    "Adafactor": (lambda p: transformers.Adafactor(p), "Adafactor keeps none"),
    "bitsandbytes": (lambda p: AdamW8bit(p), "AdamW8bit keeps it in a format of its own"),
    "accelerate": (
        lambda p: Accelerator().prepare_optimizer(torch.optim.SGD(p, lr=0.1)),
        "SGD with momentum=0 keeps none",
    ),
    "none": (lambda p: None, "there is no optimizer"),
}


@looped
@pytest.mark.parametrize("name", REFUSED_AT_ONCE)
def test_an_optimizer_that_will_keep_none_is_refused_before_its_first_step(name: str) -> None:
    new, problem = REFUSED_AT_ONCE[name]
    params = list(Classifier().parameters())
    optimizer = new(params)
    for refuse in (
        lambda: refuse_optimizer(optimizer),
        lambda: Momentum().direction_before_pass(params, RHO, StepContext(optimizer=optimizer)),
    ):
        with pytest.raises(ValueError, match=re.escape(problem)) as error:
            refuse()
        assert "Take AdamW or another Adam (optim='adamw_torch_fused')" in str(error.value)
        assert "or another variant, such as 'sam'." in str(error.value)


@looped
@every_keeper
def test_an_optimizer_that_keeps_one_is_not_refused(keeper: str) -> None:
    params = list(Classifier().parameters())
    refuse_optimizer(KEEPERS[keeper][0](params), params)


def test_a_group_without_parameters_says_nothing() -> None:
    params = list(Classifier().parameters())
    groups = [{"params": params, "momentum": 0.9}, {"params": []}]
    refuse_optimizer(torch.optim.SGD(groups, lr=0.1), params)


def test_an_optimizer_of_copies_is_refused() -> None:
    params = list(Classifier().parameters())
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in params]))
    with pytest.raises(ValueError, match="AdamW holds none of the model's own parameters"):
        Momentum().direction_before_pass(params, RHO, StepContext(optimizer=adamw([flat])))


class Quantised(Tensor):
    """A tensor that looks like float32 and is not."""


def keeps(key: str, change: Callable[[Tensor], Any]) -> New:
    """Return what makes an optimizer that keeps something else where AdamW keeps its first moment."""

    class Odd(torch.optim.AdamW):
        def step(self, *_: Any) -> None:
            super().step()
            for state in self.state.values():
                state[key] = change(state["exp_avg"])
                if key != "exp_avg":
                    del state["exp_avg"]

    return lambda p: Odd(p)


ODD: dict[str, New] = {
    "8 bits": keeps("exp_avg", lambda m: m.to(torch.uint8)),
    "integers": keeps("exp_avg", lambda m: m.to(torch.int32)),
    "a subclass": keeps("exp_avg", lambda m: m.clone().as_subclass(Quantised)),
    "low rank": keeps("exp_avg", lambda m: m.flatten()[:1]),
    "transposed": keeps("exp_avg", lambda m: m.t() if m.dim() > 1 else m),
    "another device": keeps("exp_avg", lambda m: m.to("meta")),
    "another name": keeps("state1", lambda m: m),
    "no tensor": keeps("exp_avg", lambda m: m.tolist()),
    "torch's Adafactor": lambda p: torch.optim.Adafactor(p),
}


@looped
@pytest.mark.parametrize("name", ODD)
def test_an_optimizer_that_turns_out_to_keep_none_is_refused_at_its_second_step(name: str) -> None:
    model, optimizer = trained(ODD[name], steps=1)
    with pytest.raises(ValueError, match=rf"{type(optimizer).__name__} keeps .* for a parameter of shape \(7, 5\)"):
        Momentum().direction_before_pass(list(model.parameters()), RHO, StepContext(optimizer=optimizer))


def test_a_state_of_nothing_is_a_state_before_the_first_step() -> None:
    model, optimizer = trained(KEEPERS["SGD"][0], steps=0)
    for p in model.parameters():
        optimizer.state[p]["momentum_buffer"] = None
    assert first_moment(optimizer, model.first.weight) is None
    assert Momentum().direction_before_pass(list(model.parameters()), RHO, StepContext(optimizer=optimizer)) is None


# ----------------------------------------------------------------------------------------------------------------------
# Sharded weights
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.skipif(not FSDP2_ON_CPU, reason="fully_shard needs a GPU")
@both_forms
def test_sharded_weights_train_as_whole_ones(adaptive: bool, group: None) -> None:
    whole, _ = our_run(OPTIMIZERS["adamw"][1], adaptive)
    model, variant = classifier(torch.float64), Momentum(adaptive=adaptive)
    fully_shard(model)
    optimizer = OPTIMIZERS["adamw"][1](model.parameters())
    for step, closure in enumerate(closures(model)):
        optimizer.zero_grad()
        params = as_shards(list(model.parameters()))
        context = StepContext(step=step, optimizer=optimizer)
        found = variant.direction_before_pass(params, RHO, context)
        assert isinstance(params, Shards)
        assert found is None if step == 0 else isinstance(found[0], Shards)
        one_pass_step(closure, params, variant, rho=RHO, context=context)
        optimizer.step()
    parts = [local_shard(p) for p in model.parameters()]
    assert relative_error(parts, list(whole.values())) < RELATIVE[torch.float64]


@both_forms
def test_what_several_processes_hold_counts_once(adaptive: bool, group: None) -> None:
    """A group of one is told that four hold each element: each adds a quarter, and nobody else is there to add."""
    model, optimizer = trained(adamw, torch.float64)
    params = list(model.parameters())
    shards = Shards(params, {id(p): 4 for p in params})
    context, variant = StepContext(optimizer=optimizer), Momentum(adaptive=adaptive)
    alone, shared = (variant.direction_before_pass(p, RHO, context)[1].epsilon for p in (params, shards))
    assert relative_error(shared, [2 * e for e in alone]) < RELATIVE[torch.float64]
    reports = [one_pass_step(lambda: None, p, variant, rho=RHO, context=context) for p in (params, shards)]
    assert reports[1].epsilon_norm.item() == pytest.approx(reports[0].epsilon_norm.item(), rel=1e-12)
