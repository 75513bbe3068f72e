# SPDX-License-Identifier: Apache-2.0
"""Do the relatives of SAM agree with pytorch-optimizer's, where that is the paper's algorithm?"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hf_sam import Variant
from hf_sam.step.gradient_mixing import UNMIXED, GradientMixing
from hf_sam.step.two_pass import two_pass_step
from hf_sam.variants import make_variant
from tests.compare import relative_error
from tests.small_models import backward_closure
from tests.step.test_two_pass import RHO, batches, classifier, closures
from tests.tolerances import RELATIVE

peers = pytest.importorskip("pytorch_optimizer")
if tuple(map(int, version("pytorch_optimizer").split(".")[:2])) < (4, 1):  # where Friendly-SAM remembered its own d
    pytest.skip("compared with pytorch-optimizer 4.1", allow_module_level=True)

BASES = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01}),
}
every_base = pytest.mark.parametrize("base", BASES)
# In float64, where a method multiplies rounding by ten: the peer takes its norms in float32, and adds 1e-8 to one.
PEERS_OWN = 1e-6
Closure = Callable[[], Tensor]


def train(
    model: nn.Module, variant: Variant, optimizer: Any, steps: list[Closure], mixing: GradientMixing = UNMIXED
) -> None:
    params = list(model.parameters())
    for t, closure in enumerate(steps):
        optimizer.zero_grad()
        closure()
        if t % variant.every:
            variant.reuse_(params, [p.grad for p in params])
        else:
            two_pass_step(closure, params, variant, rho=RHO, mixing=mixing)
        optimizer.step()


def trained(
    variant: Variant, base: str, dtype: torch.dtype = torch.float32, mixing: GradientMixing = UNMIXED
) -> list[Tensor]:
    model = classifier(dtype)
    new, options = BASES[base]
    train(model, variant, new(model.parameters(), **options), closures(model), mixing)
    return list(model.parameters())


class Constant:
    """What GSAM asks for its radius."""

    def step(self) -> float:
        return RHO


@every_base
def test_gsam(base: str) -> None:
    model = classifier(torch.float32)
    new, options = BASES[base]
    optimizer = new(model.parameters(), **options)
    peer = peers.GSAM(model.parameters(), optimizer, model, Constant(), alpha=0.4)
    for x, y in batches():
        peer.set_closure(cross_entropy, torch.from_numpy(x).float(), torch.from_numpy(y))
        peer.step()
    assert relative_error(trained(make_variant("gsam"), base), list(model.parameters())) < RELATIVE[torch.float32]


@pytest.mark.parametrize("gamma", [0.9, 0.3])
@every_base
def test_weighted_sharpness(base: str, gamma: float) -> None:
    model = classifier(torch.float64)
    new, options = BASES[base]
    peer = peers.WSAM(model, model.parameters(), new, rho=RHO, gamma=gamma, decouple=False, **options)
    for closure in closures(model):
        closure()
        peer.first_step(zero_grad=True)
        closure()
        peer.second_step(zero_grad=True)
    ours = trained(make_variant("sam"), base, torch.float64, GradientMixing(gamma / (1 - gamma)))
    assert relative_error(ours, list(model.parameters())) < PEERS_OWN


@pytest.mark.parametrize("foreach", [False, True])
@every_base
def test_friendly_sam(base: str, foreach: bool) -> None:
    """After the first step, where the peer's mean starts at the first gradient and ours, as in the paper, at zero.

    The peer takes off the mean of the gradients before this one. With sigma = 1 that is the same direction:
    g - (lmbda * m + (1 - lmbda) * g) = lmbda * (g - m).
    """
    model = classifier(torch.float32)
    new, options = BASES[base]
    peer = peers.FriendlySAM(model.parameters(), new, rho=RHO, sigma=1.0, lmbda=0.9, foreach=foreach, **options)
    ours, variant = classifier(torch.float32), make_variant("friendly")
    optimizer = new(ours.parameters(), **options)
    for t, (closure, own_closure) in enumerate(zip(closures(model), closures(ours), strict=True)):
        closure()
        peer.first_step(zero_grad=True)
        closure()
        peer.second_step(zero_grad=True)
        train(ours, variant, optimizer, [own_closure])
        if t == 0:
            means = [peer.state[p]["momentum"].clone() for p in model.parameters()]
            variant.load_state_dict({f"mean#{i}": m for i, m in enumerate(means)})
    assert relative_error(list(ours.parameters()), list(model.parameters())) < RELATIVE[torch.float32]


@every_base
def test_looksam(base: str) -> None:
    """With one parameter, because the peer projects each tensor by itself."""

    def linear() -> nn.Linear:
        torch.manual_seed(3)
        return nn.Linear(5, 3, bias=False).double()

    def passes(model: nn.Linear) -> list[Closure]:
        data = [(torch.from_numpy(x).double(), torch.from_numpy(y)) for x, y in batches()]
        return [backward_closure(lambda x=x, y=y: cross_entropy(model(x), y)) for x, y in data]

    model, ours = linear(), linear()
    new, options = BASES[base]
    peer = peers.LookSAM(model.parameters(), new, rho=RHO, k=5, alpha=0.7, **options)
    for closure in passes(model):
        closure()
        peer.first_step(zero_grad=True)
        closure()
        peer.second_step(zero_grad=True)
    variant = make_variant("looksam", {"k": 5, "alpha": 0.7})
    train(ours, variant, new(ours.parameters(), **options), passes(ours))
    assert relative_error(list(ours.parameters()), list(model.parameters())) < PEERS_OWN
