# SPDX-License-Identifier: Apache-2.0
"""Does stochastic rounding bring a perturbation into 16-bit weights whole, on average, and touch nothing else?"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hf_sam import sharpness_aware_grad
from hf_sam.step.perturbation import Perturbation
from hf_sam.vectors.stochastic_rounding import StochasticRounding, seed_from
from hf_sam.vectors.vectors import PIECE, along, snapshot
from tests.compare import bits, same_bits
from tests.looped import looped
from tests.small_models import Classifier, square_closure

HALVES = [torch.bfloat16, torch.float16]
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
every_half = pytest.mark.parametrize("dtype", HALVES, ids=str)
DRAWS = 100_000
# Weight and perturbation: around powers of two (the distance to the next number changes), from zero, over several
# numbers, among the denormals and out of them.
CASES = {
    torch.bfloat16: [
        *((1.0, 1e-3), (1.0, -1e-3), (1.9921875, 1e-3), (2.0, -1e-3), (0.02, 7e-6), (0.0, 1e-6), (1e4, 3.0)),
        *((0.02, 0.5), (1e-3, -2e-3), (0.0, 1e-40), (9.2e-41, 5e-41), (1.1754944e-38, 1e-40), (1.1754944e-38, -1e-40)),
    ],
    torch.float16: [
        *((1.0, 1e-4), (1.0, -1e-4), (1.9990234, 1e-4), (2.0, -1e-4), (0.02, 7e-6), (0.0, 1e-6), (1e4, 3.0)),
        *((0.02, 0.5), (1e-3, -2e-3), (0.0, 1e-8), (5.9604645e-8, 1e-8), (2.0**-14, 1e-8), (2.0**-14, -1e-8)),
    ],
}
ALL_CASES = [(dtype, sign * w, sign * e) for dtype, cases in CASES.items() for w, e in cases for sign in (1, -1)]


def added(w: Tensor, epsilon: float, seed: int = 0, parameter: int = 0) -> Tensor:
    """Return `w + epsilon`, rounded by chance."""
    moved = w.clone()
    StochasticRounding(seed).add_(parameter, moved, torch.ones_like(w), torch.tensor(epsilon, device=w.device))
    return moved


def order(x: Tensor) -> Tensor:
    """Number the values of a 16-bit type from below."""
    number = x.view(torch.int16).int()
    return torch.where(number < 0, -(number & 0x7FFF), number)


@every_device
@looped
@pytest.mark.parametrize(("dtype", "weight", "epsilon"), ALL_CASES)
def test_the_mean_is_the_exact_sum_and_only_its_two_neighbours_occur(
    device: str, dtype: torch.dtype, weight: float, epsilon: float
) -> None:
    w = torch.full((DRAWS,), weight, dtype=dtype)
    exact = (w[0].float() + torch.tensor(epsilon)).double()
    found = added(w.to(device), epsilon).cpu()
    below, above = found.min(), found.max()
    assert below.double() < exact < above.double()
    assert order(above) - order(below) == 1
    share = (exact - below.double()) / (above.double() - below.double())  # of those rounded up
    error = math.sqrt(share * (1 - share) / DRAWS)
    assert (found == above).double().mean().item() == pytest.approx(share.item(), abs=4 * error)


@every_half
@every_device
def test_a_number_that_the_type_holds_never_moves(device: str, dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    found = added(every.to(device), 0.0).cpu()
    assert torch.equal(found.nan_to_num(nan=7.0), every.nan_to_num(nan=7.0))
    assert torch.equal(found.isnan(), every.isnan())
    for size in (1.0, 2.0**-10, 2.0**-14):  # sums it holds too
        w = torch.full((1000,), size, dtype=dtype)
        assert (added(w, torch.finfo(dtype).eps * size) == size + torch.finfo(dtype).eps * size).all()


@every_half
def test_beyond_the_largest_number_is_infinity_and_nothing_else(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    unit = largest - torch.nextafter(torch.tensor(largest, dtype=dtype), torch.tensor(0.0, dtype=dtype)).item()
    for sign in (1, -1):
        found = added(torch.full((1000,), sign * largest, dtype=dtype), sign * unit / 4)
        assert set(found.tolist()) == {sign * largest, sign * math.inf}


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@every_half
def test_a_direction_that_cannot_be_climbed_moves_nothing(dtype: torch.dtype, bad: float) -> None:
    w = torch.randn(1000).to(dtype)
    start = bits([w])
    StochasticRounding(0).add_(0, w, torch.full_like(w, bad), torch.tensor(0.0))
    assert same_bits(bits([w]), start)


@every_half
def test_a_weight_rounded_in_many_parts_is_rounded_everywhere(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_sam.vectors.stochastic_rounding.CHUNK", 7)
    w, direction = torch.zeros(10, 10, dtype=dtype), torch.arange(100.0).view(10, 10).to(dtype)
    StochasticRounding(0).add_(0, w, direction, torch.tensor(1.0))
    assert torch.equal(w, direction)


# ----------------------------------------------------------------------------------------------------------------------
# Where the random bits come from
# ----------------------------------------------------------------------------------------------------------------------
def rounded_up(dtype: torch.dtype, seed: int, parameter: int = 0) -> Tensor:
    return (added(torch.ones(DRAWS, dtype=dtype), torch.finfo(dtype).eps / 2, seed, parameter) > 1).double() - 0.5


@every_half
def test_one_seed_gives_the_same_bits_and_the_next_steps_parameters_and_descents_others(dtype: torch.dtype) -> None:
    first = rounded_up(dtype, seed_from(42, 7, 0))
    assert torch.equal(first, rounded_up(dtype, seed_from(42, 7, 0)))
    others = [
        *(rounded_up(dtype, seed_from(42, step, 0)) for step in (6, 8)),
        rounded_up(dtype, seed_from(42, 7, 1)),
        rounded_up(dtype, seed_from(43, 7, 0)),
        rounded_up(dtype, seed_from(42, 7, 0), parameter=1),
        first.roll(1),
    ]
    for other in others:
        correlation = 4 * (first * other).mean()
        assert abs(correlation) < 4 / math.sqrt(DRAWS)


@every_half
def test_a_replicated_parameter_is_rounded_alike_beside_shards_of_any_size(dtype: torch.dtype) -> None:
    found = []
    for beside in (1, 10, PIECE + 5):
        params = [torch.ones(beside, dtype=dtype), torch.ones(3 * PIECE + 1, dtype=dtype)]
        directions = [torch.ones_like(p) for p in params]
        Perturbation(params, StochasticRounding(5)).apply(along(directions, 1e-3, torch.tensor(1.0)))
        found.append(params[1])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0][:PIECE], found[0][PIECE : 2 * PIECE])  # nor is one piece the next one's copy


# ----------------------------------------------------------------------------------------------------------------------
# In a step
# ----------------------------------------------------------------------------------------------------------------------
def perturbed(dtype: torch.dtype, rounding: str | torch.Generator, calls: int = 1) -> list[Tensor]:
    """Return the weights that the second pass of the last call sees, of a model that is the same at every call."""
    torch.manual_seed(3)
    model, x = Classifier(40, 50, 3).to(dtype), torch.randn(16, 40, dtype=dtype)
    there: list[list[Tensor]] = []
    closure = square_closure(model, x)

    def watched() -> Tensor:
        there.append(snapshot(list(model.parameters())))
        model.zero_grad()
        return closure()

    before = bits(model.parameters())
    for _ in range(calls):
        stream = torch.get_rng_state()
        sharpness_aware_grad(watched, model.parameters(), rho=1e-2, rounding=rounding)
        assert torch.equal(torch.get_rng_state(), stream)  # the model draws nothing, nor do we
        assert same_bits(bits(model.parameters()), before)
    return there[-1]


@every_half
def test_every_call_rounds_with_other_noise_without_touching_the_global_stream(dtype: torch.dtype) -> None:
    first, second = (perturbed(dtype, "stochastic", calls) for calls in (1, 2))
    assert not same_bits(bits(first), bits(second))
    assert not same_bits(bits(first), bits(perturbed(dtype, "nearest")))


@every_half
def test_a_generator_of_ones_own_makes_a_resume_exact(dtype: torch.dtype) -> None:
    whole, again = torch.Generator().manual_seed(11), torch.Generator()
    perturbed(dtype, whole, 3)
    again.set_state(whole.get_state())
    expected = perturbed(dtype, whole)
    assert same_bits(bits(perturbed(dtype, again)), bits(expected))
    assert not same_bits(bits(perturbed(dtype, again)), bits(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_full_precision_move_as_ever(dtype: torch.dtype) -> None:
    assert same_bits(bits(perturbed(dtype, "stochastic")), bits(perturbed(dtype, "nearest")))


@every_device
def test_beside_16_bit_weights_those_of_full_precision_move_as_ever(device: str) -> None:
    found = []
    for rounding in (None, StochasticRounding(1)):
        params = [torch.ones(500, dtype=d, device=device) for d in (torch.float32, torch.bfloat16, torch.float32)]
        directions = [torch.full_like(p, 0.3) for p in params]
        Perturbation(params, rounding).apply(along(directions, 1e-3, torch.tensor(1.0, device=device)))
        found.append(params)
    nearest, chance = found
    assert same_bits(bits([nearest[0], nearest[2]]), bits([chance[0], chance[2]]))
    assert nearest[1].unique().numel() == 1
    assert chance[1].unique().numel() == 2


@every_half
def test_a_transposed_weight_is_perturbed_whole(dtype: torch.dtype) -> None:
    w = torch.full((300, 500), 0.02, dtype=dtype).t()
    direction = torch.ones(500, 300, dtype=dtype)
    perturbation, start = Perturbation([w], StochasticRounding(1)), bits([w])
    perturbation.apply(along([direction], 1e-6, torch.tensor(1.0)))
    moved = w.double() - 0.02
    assert (w.double().mean() - torch.tensor(0.02, dtype=dtype).double()).item() == pytest.approx(
        1e-6, abs=4 * moved.std().item() / math.sqrt(w.numel())
    )
    perturbation.undo()
    assert same_bits(bits([w]), start)


@pytest.mark.parametrize("rounding", ["up", None, 3])
def test_an_unknown_rounding_is_refused(rounding: object) -> None:
    w = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"`sharpness_aware_grad\(rounding=...\)` must be one of nearest, stochastic"):
        sharpness_aware_grad(lambda: w.sum(), [w], rounding=rounding)
