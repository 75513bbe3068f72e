# SPDX-License-Identifier: Apache-2.0
"""Does `random` go as far as it is told, anywhere, and to the same place for whoever holds the same weights?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from hf_sam.step.one_pass import one_pass_step
from hf_sam.step_context import StepContext
from hf_sam.variants.random_direction import RandomDirection
from hf_sam.vectors.shards import Shards, as_shards
from hf_sam.vectors.vectors import global_norm
from tests.compare import bits, same_bits
from tests.small_models import Classifier, square_closure

RHO = 0.3
WIDE = [(40, 50), (7,), (3, 2, 2, 2), ()]


def weights(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in WIDE]


def epsilon_at(step: int, seed: int = 0, params: list[Tensor] | None = None) -> list[Tensor]:
    return (
        RandomDirection().direction_before_pass(params or weights(), RHO, StepContext(step=step, seed=seed))[1].epsilon
    )


def as_vector(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten().double() for t in tensors])


def cosine(left: list[Tensor], right: list[Tensor]) -> float:
    return torch.nn.functional.cosine_similarity(as_vector(left), as_vector(right), dim=0).item()


# ----------------------------------------------------------------------------------------------------------------------
# Anywhere, at the same distance
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_length_is_rho_over_all_parameters_together(dtype: torch.dtype) -> None:
    params = weights(dtype)
    epsilon = epsilon_at(3, params=params)
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 5e-4}[dtype]
    assert global_norm(epsilon).item() == pytest.approx(RHO, rel=tolerance)
    assert [(e.shape, e.dtype) for e in epsilon] == [(p.shape, p.dtype) for p in params]


def test_no_parameter_and_no_sign_is_preferred() -> None:
    """The mean square of an element is rho^2 / N wherever it is, its mean zero, its fourth moment Gaussian."""
    draws = [epsilon_at(step) for step in range(400)]
    n = as_vector(draws[0]).numel()
    for number, shape in enumerate(WIDE):
        z = torch.stack([d[number].flatten() for d in draws]) / (RHO / math.sqrt(n))
        error = 5 / math.sqrt(z.numel())
        assert abs(z.mean()) < error, shape
        assert abs(z.square().mean() - 1) < error * math.sqrt(2), shape
        assert abs(z.pow(4).mean() - 3) < error * math.sqrt(96), shape


def test_every_step_and_every_seed_goes_elsewhere() -> None:
    found = [epsilon_at(step, seed) for seed in (0, 1) for step in range(4)]
    n = as_vector(found[0]).numel()
    assert max(abs(cosine(a, b)) for i, a in enumerate(found) for b in found[:i]) < 5 / math.sqrt(n)


def test_parameters_of_one_shape_move_differently() -> None:
    left, right = epsilon_at(0, params=[torch.zeros(2000), torch.zeros(2000)])
    assert abs(cosine([left], [right])) < 5 / math.sqrt(2000)


# ----------------------------------------------------------------------------------------------------------------------
# The same place, for the same step
# ----------------------------------------------------------------------------------------------------------------------
def test_every_micro_batch_of_a_step_finds_the_same_weights() -> None:
    model, x = Classifier(), torch.randn(4, 5)
    params, there = list(model.parameters()), []
    variant = RandomDirection()
    for _ in range(2):

        def evaluate() -> None:
            there.append(bits(params))
            square_closure(model, x)()

        report = one_pass_step(evaluate, params, variant, rho=RHO, context=StepContext(step=5, seed=1))
        assert report.epsilon_norm.item() == pytest.approx(RHO, rel=1e-5)
    assert same_bits(there[0], there[1])
    assert not same_bits(there[0], bits(params))


def test_a_resumed_run_needs_no_state() -> None:
    variant = RandomDirection()
    for step in range(3):
        variant.direction_before_pass(weights(), RHO, StepContext(step=step))
    assert variant.state_dict() == {}
    resumed = variant.direction_before_pass(weights(), RHO, StepContext(step=3))[1].epsilon
    assert same_bits(bits(resumed), bits(epsilon_at(3)))


def test_the_runs_random_stream_is_left_alone() -> None:
    before = torch.get_rng_state()
    first = epsilon_at(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1234)
    assert same_bits(bits(epsilon_at(0)), bits(first))


def test_nothing_waits_for_the_device() -> None:
    params = [torch.empty(3, 4, device="meta"), torch.empty(5, device="meta")]
    rho = torch.ones((), device="meta")
    report = one_pass_step(lambda: None, params, RandomDirection(), rho=rho, context=StepContext())
    assert report.epsilon_norm.is_meta


@pytest.mark.gpu
def test_a_gpu_draws_from_a_stream_of_its_own_without_waiting() -> None:
    params = [torch.zeros(3000, device="cuda")]
    RandomDirection().direction_before_pass(params, RHO, StepContext())
    before = torch.cuda.get_rng_state()
    torch.cuda.set_sync_debug_mode("error")
    try:
        first, again, other = (
            RandomDirection().direction_before_pass(params, RHO, StepContext(step=s))[1] for s in (1, 1, 2)
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.equal(first.direction[0], again.direction[0])
    assert not torch.equal(first.direction[0], other.direction[0])


# ----------------------------------------------------------------------------------------------------------------------
# Several processes. These are never started: each is played in turn, by a group that does not communicate.
# ----------------------------------------------------------------------------------------------------------------------
@contextmanager
def process(rank: int, world: int) -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def directions(params: list[Tensor]) -> list[Tensor]:
    return RandomDirection().direction_before_pass(params, RHO, StepContext(step=1))[1].direction


MESHES = {
    "FSDP": ((4,), [Shard(0)], [0, 1, 2, 3]),
    "HSDP": ((2, 2), [Replicate(), Shard(0)], [0, 1, 0, 1]),
    "replicated by columns": ((2, 2), [Shard(0), Replicate()], [0, 0, 1, 1]),
    "two dimensions": ((2, 2), [Shard(0), Shard(1)], [0, 1, 2, 3]),
    "replicas": ((4,), [Replicate()], [0, 0, 0, 0]),
}


@pytest.mark.parametrize("name", MESHES)
def test_processes_move_alike_what_they_both_hold_and_differently_what_only_one_does(name: str) -> None:
    shape, placements, shards = MESHES[name]
    found = []
    for rank in range(4):
        with process(rank, 4):
            mesh = init_device_mesh("cpu", shape)
            sharded = DTensor.from_local(torch.zeros(30, 30), mesh, placements, run_check=False)
            adapter = torch.zeros(50)
            found.append(directions(as_shards([sharded, adapter])))
    for i in range(4):
        for j in range(i):
            assert torch.equal(found[i][1], found[j][1])
            if shards[i] == shards[j]:
                assert torch.equal(found[i][0], found[j][0])
            else:
                assert abs(cosine([found[i][0]], [found[j][0]])) < 5 / math.sqrt(900)


@pytest.mark.parametrize(("copies", "shards"), [(1, [0, 1, 2, 3]), (2, [0, 1, 0, 1]), (4, [0, 0, 0, 0])])
def test_so_do_those_of_fsdp1_whose_parameters_say_nothing(copies: int, shards: list[int]) -> None:
    found = []
    for rank in range(4):
        with process(rank, 4):
            flat = torch.zeros(900)
            (z,) = directions(Shards([flat], {id(flat): copies}))
            found.append(z)
    assert [[torch.equal(a, b) for b in found] for a in found] == [[i == j for j in shards] for i in shards]


def test_replicated_weights_move_alike_everywhere() -> None:
    alone = directions([torch.zeros(30, 30)])
    found = []
    for rank in range(2):
        with process(rank, 2):
            found.append(directions([torch.zeros(30, 30)]))
    assert same_bits(bits(found[0]), bits(alone))
    assert same_bits(bits(found[1]), bits(alone))
