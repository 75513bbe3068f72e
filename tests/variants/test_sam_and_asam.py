# SPDX-License-Identifier: Apache-2.0
"""How long are SAM's and ASAM's perturbations, and which options does ASAM take?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_sam import ASAM, SAM
from hf_sam.variants import make_variant
from hf_sam.vectors.vectors import global_norm, snapshot
from tests.looped import looped

RHO = 0.3
ALL = {"eta": 0.0, "scaled": "all"}


def weights_and_gradient() -> tuple[list[nn.Parameter], list[Tensor]]:
    shapes = [(8, 6), (8,), (3, 2, 2, 2), ()]
    w = [nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in shapes]
    return w, [torch.randn(s, dtype=torch.float64) for s in shapes]


def test_the_length_of_sam_is_rho() -> None:
    w, g = weights_and_gradient()
    assert global_norm(SAM().ascend(w, g, RHO).epsilon).item() == pytest.approx(RHO, rel=1e-14)


@pytest.mark.parametrize(
    ("options", "scaled"),
    [({}, [0, 2]), ({"eta": 1.0}, [0, 2]), ({"scaled": "all"}, [0, 1, 2, 3]), (ALL, [0, 1, 2, 3])],
)
def test_the_length_of_asam_seen_through_t_is_rho(options: dict[str, Any], scaled: list[int]) -> None:
    w, g = weights_and_gradient()
    variant = ASAM(**options)
    epsilon = variant.ascend(w, g, RHO).epsilon
    t = [p.detach().abs() + variant.eta if i in scaled else torch.ones_like(p) for i, p in enumerate(w)]
    seen = [e / s for e, s in zip(epsilon, t, strict=True)]
    assert global_norm(seen).item() == pytest.approx(RHO, rel=1e-12)


def test_asam_ignores_a_rescaling_of_the_weights_that_keeps_the_function() -> None:
    """Kwon et al. 2021, section 3: w -> 3w and g -> g/3 move every weight by the same share."""
    w, g = weights_and_gradient()
    plain = ASAM(**ALL).ascend(w, snapshot(g), RHO).epsilon
    factors = [3.0, 1.0, 0.1, 1.0]
    scaled_w = [nn.Parameter(p.detach() * f) for p, f in zip(w, factors, strict=True)]
    scaled = ASAM(**ALL).ascend(scaled_w, [x / f for x, f in zip(g, factors, strict=True)], RHO).epsilon
    for e, s, f in zip(plain, scaled, factors, strict=True):
        torch.testing.assert_close(s, e * f, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("scaled", "expected"), [("matrices", [0]), ("all", [0, 1, 2]), ("named_weight", [0, 2])])
def test_scaled_says_which_weights_count(scaled: str, expected: list[int]) -> None:
    w = [nn.Parameter(torch.full(s, 2.0)) for s in ((2, 2), (2,), (2,))]
    variant = ASAM(eta=0, scaled=scaled)
    variant.prepare(zip(["a.weight", "a.bias", "norm.weight"], w, strict=True))
    epsilon = variant.ascend(w, [torch.ones_like(p) for p in w], RHO).epsilon
    shortest = min(e.flatten()[0].item() for e in epsilon)
    grown = [i for i, e in enumerate(epsilon) if e.flatten()[0].item() > 3.9 * shortest]
    assert grown == (expected if len(expected) < 3 else [])


def test_names_outlive_the_generator_they_came_from() -> None:
    w = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    variant = ASAM(scaled="named_weight")
    variant.prepare((name, p) for name, p in zip(["weight", "bias"], w, strict=True))
    for _ in range(2):
        assert variant.ascend(w, [torch.ones(2), torch.ones(2)], RHO).usable


BAD_OPTIONS = [
    ({"eta": -0.1}, r"`ASAM\(eta=\.\.\.\)` must be a finite number >= 0, got -0\.1\."),
    ({"eta": float("inf")}, r"`ASAM\(eta=\.\.\.\)` must be a finite number >= 0, got inf\."),
    ({"eta": float("nan")}, r"`ASAM\(eta=\.\.\.\)` must be a finite number >= 0, got nan\."),
    ({"eta": "0.1"}, r"`ASAM\(eta=\.\.\.\)` must be a finite number >= 0, got '0\.1'\."),
    ({"eta": True}, r"`ASAM\(eta=\.\.\.\)` must be a finite number >= 0, got True\."),
    ({"scaled": "some"}, r"`ASAM\(scaled=\.\.\.\)` must be one of matrices, all, named_weight, got 'some'\."),
    ({"power": 3}, r"`ASAM\(power=\.\.\.\)` must be 1 or 2, got 3\."),
    ({"power": True}, r"`ASAM\(power=\.\.\.\)` must be 1 or 2, got True\."),
    ({"weighted_norm": 1}, r"`ASAM\(weighted_norm=\.\.\.\)` must be true or false, got 1\."),
]


@looped
@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=[str(b[0]) for b in BAD_OPTIONS])
def test_a_bad_option_is_named_with_its_rule_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_variant("asam", options)


def test_an_unknown_option_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"'asam' has no option 'etta'; its options: eta, scaled, power, weighted_norm\."
    ):
        make_variant("asam", {"etta": 0.1})


def test_an_unknown_variant_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"must be one of sam, asam.*, got 'SAM'\."):
        make_variant("SAM")
