# SPDX-License-Identifier: Apache-2.0
"""Is rho="auto" in the units of its variant, whatever the dtypes and shapes of the weights?"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_sam import SAMConfig
from hf_sam.radius.auto import CHECK, PATIENCE, Auto, size_along
from hf_sam.step_context import StepContext
from hf_sam.trainer.step_planner import StepPlanner
from hf_sam.variants import make_variant
from hf_sam.variants.asam import ETA
from hf_sam.vectors import vectors as numerics
from hf_sam.vectors.flat import global_dot
from hf_sam.vectors.vectors import snapshot
from tests.compare import bits, same_bits
from tests.looped import looped

# ----------------------------------------------------------------------------------------------------------------------
# The size of the weights along a direction
# ----------------------------------------------------------------------------------------------------------------------
SHAPES = [(6, 5), (30,), (), (2, 3, 4), (1, 1), (40,)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def drawn(shapes: list[tuple[int, ...]], dtypes: list[torch.dtype], seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [x.to(dtypes[i % len(dtypes)]) for i, x in enumerate(draws)]


def expected_size(w: list[Tensor], v: list[Tensor]) -> float:
    ws, vs = ([x.detach().double().numpy() for x in xs] for xs in (w, v))
    scaled = [(abs(a) + ETA) * b if a.ndim >= 2 else b for a, b in zip(ws, vs, strict=True)]
    return float(np.sqrt(sum((x**2).sum() for x in scaled)) / np.sqrt(sum((x**2).sum() for x in vs)))


def check_size(w: list[Tensor], v: list[Tensor], exactness: float) -> None:
    before = bits([*w, *v])
    found = size_along([nn.Parameter(x) for x in w], v)
    assert found.shape == ()
    assert found.item() == pytest.approx(expected_size(w, v), rel=exactness)
    assert same_bits(bits([*w, *v]), before)


@looped
@pytest.mark.parametrize("dtypes", [*([d] for d in DTYPES), DTYPES, DTYPES[1:3], DTYPES[::-1]], ids=str)
@pytest.mark.parametrize("like_weights", [True, False])
@pytest.mark.parametrize("scale", [0.02, 1.0, 50.0])
def test_it_is_the_formulas_in_any_dtype(dtypes: list[torch.dtype], like_weights: bool, scale: float) -> None:
    w, v = drawn(SHAPES, dtypes, 1, scale), drawn(SHAPES, dtypes if like_weights else [torch.float32], 2)
    check_size(w, v, 1e-12 if dtypes == [torch.float64] and like_weights else 2e-6)


def test_it_is_one_number_over_matrices_of_zeros_and_vectors() -> None:
    v = drawn([(4, 4), (9,)], DTYPES[:1], 2)
    zero = [torch.zeros(4, 4, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)]
    assert size_along(zero[:1], v[:1]).item() == pytest.approx(ETA, rel=1e-12)
    assert size_along(zero[1:], v[1:]).item() == 1
    check_size(zero, v, 1e-12)


@pytest.mark.parametrize("piece", [1, 7, 64, None])
def test_pieces_make_no_difference(piece: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a vector has one dimension, and so has a part of a matrix, which is scaled all the same."""
    if piece is not None:
        monkeypatch.setattr(numerics, "PIECE", piece)
    shapes = SHAPES if piece else [(numerics.PIECE + 3,), (3, numerics.PIECE // 2), (5,), (numerics.PIECE + 1, 1)]
    check_size(drawn(shapes, DTYPES[:1], 1), drawn(shapes, DTYPES[:1], 2), 1e-12)
    check_size(drawn(shapes, DTYPES[:2], 1), drawn(shapes, DTYPES[1:2], 2), 2e-6)


def test_the_layout_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "PIECE", 8)
    w, v = drawn([(6, 5), (5, 6)], DTYPES[:1], 1), drawn([(6, 5), (5, 6)], DTYPES[:1], 2)
    check_size([w[0], w[1].t()], [v[1].t(), v[0]], 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_length_of_the_direction_makes_no_difference(dtype: torch.dtype) -> None:
    w, v = [nn.Parameter(x) for x in drawn(SHAPES, [dtype], 1)], drawn(SHAPES, [dtype], 2)
    found = [size_along(w, [x * 2.0**k for x in v]).item() for k in (-6, -1, 0, 3, 13)]
    assert found == pytest.approx([found[0]] * 5, rel=1e-6)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_direction_that_leads_nowhere_has_no_size(bad: float) -> None:
    w = drawn(SHAPES, DTYPES[:1], 1)
    assert size_along(w, [x * bad for x in drawn(SHAPES, DTYPES[:1], 2)]).isnan()


# ----------------------------------------------------------------------------------------------------------------------
# The radius
# ----------------------------------------------------------------------------------------------------------------------
def half_way(radius: Auto) -> Auto:
    """Bring it to half of the first loss, where it has its whole strength."""
    losses = torch.tensor([2.8, 1.4, 0.0])
    known = {"steps": PATIENCE, "patience": PATIENCE, "idle": False, "losses": losses}
    radius.load_state_dict({**radius.state_dict(), **known})
    return radius


def test_the_radius_is_the_length_in_sizes_of_the_weights() -> None:
    w, v = drawn(SHAPES, DTYPES[:1], 1), drawn(SHAPES, DTYPES[:1], 2)
    for loss_scale in (1.0, 1024.0, torch.tensor(1024.0)):
        rho = half_way(Auto(3.0)).from_gradient(w, [x * float(loss_scale) for x in v], loss_scale)
        assert rho.item() == pytest.approx(3 * expected_size(w, v), rel=1e-6)
    assert half_way(Auto(0.7, scale_free=True)).from_gradient(w, v, 1.0).item() == pytest.approx(0.7, rel=1e-6)


@looped
@pytest.mark.parametrize("variant", ["sam", "gsam"])
@pytest.mark.parametrize("loss_scale", [1.0, 1024.0, torch.tensor(1024.0)])
def test_to_first_order_the_loss_rises_as_that_of_asam(variant: str, loss_scale: float | Tensor) -> None:
    """<g, epsilon>, without the loss scale."""
    w, g = [nn.Parameter(x) for x in drawn(SHAPES, DTYPES[:1], 1)], drawn(SHAPES, DTYPES[:1], 2)
    scaled = [x * float(loss_scale) for x in g]
    rises = []
    for name in (variant, "asam"):
        rho = half_way(Auto(0.5, scale_free=name == "asam")).from_gradient(w, scaled, loss_scale)
        rises.append(global_dot(g, make_variant(name).ascend(w, snapshot(scaled), rho).epsilon).item())
    assert rises[0] == pytest.approx(rises[1], rel=1e-6)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_gradient_that_leads_nowhere_moves_nothing(bad: float) -> None:
    w, g = drawn(SHAPES, DTYPES[:1], 1), [x * bad for x in drawn(SHAPES, DTYPES[:1], 2)]
    ascent = make_variant("sam").ascend(w, g, half_way(Auto()).from_gradient(w, g, 1.0))
    assert not ascent.usable
    assert all((e == 0).all() for e in ascent.epsilon)


@pytest.mark.parametrize("variant", ["sam", "asam", "momentum", "random"])
def test_a_run_takes_its_directions_strength_and_units(variant: str) -> None:
    policy = StepPlanner(SAMConfig(rho="auto", sam_variant=variant, sam_start=0.0))
    half_way(policy.radius)
    plan = policy.plan(StepContext(step=30, steps=300))
    w, v = drawn(SHAPES, DTYPES[:1], 1), drawn(SHAPES, DTYPES[:1], 2)
    expected = policy.variant.auto_strength * (1 if policy.variant.scale_free else expected_size(w, v))
    assert policy.length(plan)(w, v).item() == pytest.approx(expected, rel=1e-6)


def test_a_part_of_the_loss_has_the_same_radius() -> None:
    """The gradient of one of four micro-batches is about a quarter as long, and the radius the same."""
    policy = StepPlanner(SAMConfig(rho="auto", sam_scope="micro_batch"))
    half_way(policy.radius)
    plan = policy.plan(StepContext(step=30, steps=300))
    w, g = drawn(SHAPES, DTYPES[:1], 1), drawn(SHAPES, DTYPES[:1], 2)
    whole = policy.length(plan)(w, g).item()
    assert policy.length(plan, 4)(w, [x / 4 for x in g]).item() == pytest.approx(whole, rel=1e-6)


def test_the_device_is_waited_for_only_to_look_whether_to_rest() -> None:
    """A tensor on meta has no values to be read; whoever tries fails."""
    w, g = ([x.to("meta") for x in drawn(SHAPES, DTYPES, seed)] for seed in (1, 2))
    radius = half_way(Auto())
    for _ in range(CHECK - 1):
        radius.observe(torch.ones((), device="meta"), None)
    length = radius.at(StepContext(step=PATIENCE + CHECK, steps=1000))
    assert isinstance(length, Tensor)
    assert length.is_meta
    assert radius.from_gradient(w, g, 1.0).is_meta
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        radius.observe(torch.ones((), device="meta"), None)
