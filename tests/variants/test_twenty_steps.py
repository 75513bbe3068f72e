# SPDX-License-Identifier: Apache-2.0
"""Are the relatives of SAM the papers' algorithms? Twenty steps against NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_sam import VARIANTS, Variant
from hf_sam.step.gradient_mixing import UNMIXED, GradientMixing
from hf_sam.step.two_pass import two_pass_step
from hf_sam.variants import make_variant
from tests.compare import relative_error
from tests.reference import methods_numpy, sam_numpy
from tests.step.test_two_pass import OPTIMIZERS, RHO, batches, classifier, closures
from tests.tolerances import RELATIVE

Step = Callable[..., float]


def of(method: methods_numpy.SAM) -> Step:
    return lambda w, x, y, rho, optimizer: methods_numpy.step(w, x, y, method, rho, optimizer)


Method = tuple[Callable[[], Variant], GradientMixing, Callable[[], Step]]


def method(
    name: str, options: dict[str, Any], new_step: Callable[[], Step], mixing: GradientMixing = UNMIXED
) -> Method:
    """Return what makes our variant, how its gradient is mixed, and what makes the reference's step."""
    return lambda: make_variant(name, options), mixing, new_step


METHODS: dict[str, Method] = {
    "gsam": method("gsam", {}, lambda: of(methods_numpy.GSAM())),
    "gsam, alpha 2": method("gsam", {"alpha": 2}, lambda: of(methods_numpy.GSAM(2))),
    "friendly": method("friendly", {}, lambda: of(methods_numpy.FriendlySAM())),
    "friendly, short memory": method(
        "friendly", {"sigma": 0.7, "lmbda": 0.6}, lambda: of(methods_numpy.FriendlySAM(0.7, 0.6))
    ),
    "looksam": method("looksam", {}, lambda: methods_numpy.LookSAM(5, 0.1).step),
    "looksam, k 3": method("looksam", {"k": 3, "alpha": 0.7}, lambda: methods_numpy.LookSAM(3, 0.7).step),
    "weighted": method("sam", {}, lambda: of(methods_numpy.WSAM(0.9)), GradientMixing(9.0)),
    "weighted less": method("sam", {}, lambda: of(methods_numpy.WSAM(0.2)), GradientMixing(0.25)),
    "renormalised": method("sam", {}, lambda: of(methods_numpy.SSAM()), GradientMixing(renormalise=True)),
    "both": method("sam", {}, lambda: of(methods_numpy.SSAM(methods_numpy.WSAM(0.75))), GradientMixing(3.0, True)),
    "both, of gsam": method(
        "gsam",
        {},
        lambda: of(methods_numpy.SSAM(methods_numpy.WSAM(0.75, methods_numpy.GSAM()))),
        GradientMixing(3.0, True),
    ),
}


def reference_run(new_step: Callable[[], Step], optimizer: Any) -> tuple[sam_numpy.Arrays, list[float]]:
    w, step = sam_numpy.new_weights(np.random.default_rng(0)), new_step()
    return w, [step(w, x, y, RHO, optimizer) for x, y in batches()]


def our_run(variant: Variant, optimizer: Any, mixing: GradientMixing) -> tuple[dict[str, Tensor], list[float]]:
    """Train with two passes at every `variant.every`-th step."""
    model = classifier(torch.float64)
    variant.prepare(model.named_parameters())
    params, losses = list(model.parameters()), []
    optimizer = optimizer(params)
    for t, closure in enumerate(closures(model)):
        optimizer.zero_grad()
        losses.append(closure().item())
        if t % variant.every:
            variant.reuse_(params, [p.grad for p in params])
        else:
            two_pass_step(closure, params, variant, rho=RHO, mixing=mixing)
        optimizer.step()
    return {k: p.detach() for k, p in model.named_parameters()}, losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", METHODS)
def test_twenty_steps_give_the_weights_and_clean_losses_of_the_reference(name: str, optimizer: str) -> None:
    theirs, ours = OPTIMIZERS[optimizer]
    make, mixing, new_step = METHODS[name]
    expected, expected_losses = reference_run(new_step, theirs())
    weights, losses = our_run(make(), ours, mixing)
    np.testing.assert_allclose(losses, expected_losses, rtol=RELATIVE[torch.float64])
    assert relative_error(list(weights.values()), [torch.from_numpy(expected[k]) for k in weights]) < 1e-12


def test_the_methods_differ_by_far_more_than_the_tolerance() -> None:
    steps = [new_step for *_, new_step in METHODS.values()] + [lambda: of(methods_numpy.SAM())]
    runs = [reference_run(new_step, OPTIMIZERS["sgd"][0]())[0]["first.weight"] for new_step in steps]
    assert min(np.abs(a - b).max() for i, a in enumerate(runs) for b in runs[:i]) > 1e-3


def test_every_direction_of_two_passes_has_a_reference() -> None:
    known = {"sam", "asam", *(name.split(",")[0] for name in METHODS)}
    assert {name for name, v in VARIANTS.items() if v.passes == "two" and v.__module__.startswith("hf_sam.")} <= known
