# SPDX-License-Identifier: Apache-2.0
"""Do directions of two passes decide on the accelerator, and find there what they find on a CPU?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sam.step.gradient_mixing import mix_, renormalise_
from hf_sam.vectors.vectors import global_norm, snapshot
from tests.compare import bits, relative_error, same_bits
from tests.looped import looped
from tests.variants.problems import RHO, Problem, every_case, every_combining_case


def moved(problem: Problem, device: str) -> Problem:
    problem.w, problem.g, problem.h = ([x.detach().to(device) for x in y] for y in (problem.w, problem.g, problem.h))
    problem.variant = problem.make()
    return problem


def act(problem: Problem, scale: float = 1.0) -> list[Tensor]:
    """Climb, combine, reuse, mix and renormalise."""
    g, h, between = ([scale * x for x in y] for y in (problem.g, problem.h, problem.h))
    ascent = problem.variant.ascend(problem.w, snapshot(g), RHO)
    combined = problem.variant.combine(snapshot(g), snapshot(h))
    problem.variant.reuse_(problem.w, between)
    mix_(h, g, 3.0)
    renormalise_(h, global_norm(g, problem.w), problem.w)
    return [*ascent.epsilon, *combined, *between, *h]


@looped
@every_case
def test_nothing_is_decided_on_the_host(name: str, options: dict[str, Any]) -> None:
    """A tensor without memory cannot be asked for a value."""
    problem = moved(Problem(name, options, torch.float32), "meta")
    for scale in (1.0, 2.0):
        problem.variant.loss_scale = torch.full((), 1024.0, device="meta")
        assert all(x.is_meta for x in act(problem, scale))


@pytest.mark.gpu
@every_case
def test_nothing_waits_for_the_device(name: str, options: dict[str, Any]) -> None:
    problem = moved(Problem(name, options, torch.float32), "cuda")
    problem.variant.loss_scale = torch.tensor(1024.0, device="cuda")
    act(problem)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for scale in (1.0, float("nan"), 0.0):
            act(problem, scale)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@every_case
def test_the_accelerator_finds_what_the_cpu_finds(name: str, options: dict[str, Any]) -> None:
    problems = [moved(Problem(name, options), device) for device in ("cpu", "cuda")]
    for scale in (1.0, 2.0, float("inf"), 3.0):
        expected, found = (act(problem, scale) for problem in problems)
        finite = [bool(torch.isfinite(e).all()) for e in expected]
        assert [bool(torch.isfinite(f).all()) for f in found] == finite
        kept = [(f.cpu(), e) for f, e, yes in zip(found, expected, finite, strict=True) if yes and e.any()]
        assert relative_error(*map(list, zip(*kept, strict=True))) < 1e-12 if kept else scale == float("inf")


@pytest.mark.gpu
@every_combining_case
def test_the_plain_gradient_is_left_alone_where_nothing_moved(name: str, options: dict[str, Any]) -> None:
    problem = moved(Problem(name, options, torch.float32), "cuda")
    assert same_bits(bits(problem.combine(problem.g, problem.g)), bits(problem.g))
