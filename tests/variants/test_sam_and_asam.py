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
from tests.variants.peer_asam import ASAMByName, ASAMOnAll

RHO = 0.3


def weights_and_gradient() -> tuple[list[nn.Parameter], list[Tensor]]:
    shapes = [(8, 6), (8,), (3, 2, 2, 2), ()]
    w = [nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in shapes]
    return w, [torch.randn(s, dtype=torch.float64) for s in shapes]


def test_the_length_of_sam_is_rho() -> None:
    w, g = weights_and_gradient()
    assert global_norm(SAM().ascend(w, g, RHO).epsilon).item() == pytest.approx(RHO, rel=1e-14)


@pytest.mark.parametrize(
    ("variant", "scaled"),
    [(ASAM(), [0, 2]), (ASAM(eta=1.0), [0, 2]), (ASAMOnAll(), [0, 1, 2, 3])],
    ids=["asam", "eta", "all"],
)
def test_the_length_of_asam_seen_through_t_is_rho(variant: ASAM, scaled: list[int]) -> None:
    w, g = weights_and_gradient()
    epsilon = variant.ascend(w, g, RHO).epsilon
    t = [p.detach().abs() + variant.eta if i in scaled else torch.ones_like(p) for i, p in enumerate(w)]
    seen = [e / s for e, s in zip(epsilon, t, strict=True)]
    assert global_norm(seen).item() == pytest.approx(RHO, rel=1e-12)


def test_asam_ignores_a_rescaling_of_the_weights_that_keeps_the_function() -> None:
    """Kwon et al. 2021, section 3: w -> 3w and g -> g/3 move every weight by the same share."""
    w, g = weights_and_gradient()
    plain = ASAMOnAll().ascend(w, snapshot(g), RHO).epsilon
    factors = [3.0, 1.0, 0.1, 1.0]
    scaled_w = [nn.Parameter(p.detach() * f) for p, f in zip(w, factors, strict=True)]
    scaled = ASAMOnAll().ascend(scaled_w, [x / f for x, f in zip(g, factors, strict=True)], RHO).epsilon
    for e, s, f in zip(plain, scaled, factors, strict=True):
        torch.testing.assert_close(s, e * f, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [(ASAM(eta=0), [0]), (ASAMOnAll(), [0, 1, 2]), (ASAMByName(eta=0), [0, 2])],
    ids=["asam", "all", "by name"],
)
def test_scales_says_which_weights_count(variant: ASAM, expected: list[int]) -> None:
    w = [nn.Parameter(torch.full(s, 2.0)) for s in ((2, 2), (2,), (2,))]
    variant.prepare(zip(["a.weight", "a.bias", "norm.weight"], w, strict=True))
    epsilon = variant.ascend(w, [torch.ones_like(p) for p in w], RHO).epsilon
    shortest = min(e.flatten()[0].item() for e in epsilon)
    grown = [i for i, e in enumerate(epsilon) if e.flatten()[0].item() > 3.9 * shortest]
    assert grown == (expected if len(expected) < 3 else [])


BAD_OPTIONS = [
    ({"eta": -0.1}, ValueError, r"`ASAM\(eta=\.\.\.\)` must be a finite number >= 0, got -0\.1\."),
    ({"eta": float("inf")}, ValueError, r"`ASAM\(eta=\.\.\.\)` must be a finite number >= 0, got inf\."),
    ({"eta": float("nan")}, ValueError, r"`ASAM\(eta=\.\.\.\)` must be a finite number >= 0, got nan\."),
    ({"eta": "0.1"}, TypeError, r"`ASAM\(eta=\.\.\.\)` must be a number >= 0, got '0\.1'\."),
    ({"eta": True}, TypeError, r"`ASAM\(eta=\.\.\.\)` must be a number >= 0, got True\."),
]


@looped
@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS, ids=[str(b[0]) for b in BAD_OPTIONS])
def test_a_bad_option_is_named_with_its_rule_and_value(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_variant("asam", options)


def test_an_unknown_option_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'asam' has no option 'etta'; its options: eta\."):
        make_variant("asam", {"etta": 0.1})


def test_an_unknown_variant_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"must be one of sam, asam.*, got 'SAM'\."):
        make_variant("SAM")
