# SPDX-License-Identifier: Apache-2.0
"""Is the rise of the loss the one that the formulas say? On a quadratic, where everything is known, and on models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_sam.sharpness import SharpnessAnalyzer
from tests.sharpness.models import build, hessian

SIZE = 12


class Quadratic(nn.Module):
    """L(w) = mean over examples of (w - x)' A (w - x) / 2 + b' w, with w a matrix, so that ASAM scales it."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.randn(SIZE, SIZE, dtype=torch.float64)
        self.a = random + random.T + 4 * torch.eye(SIZE, dtype=torch.float64)
        self.b = torch.randn(SIZE, dtype=torch.float64)
        self.w = nn.Parameter(torch.randn(3, SIZE // 3, dtype=torch.float64))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        offset = self.w.reshape(-1) - x
        return {"loss": ((offset @ self.a) * offset).sum(-1).mean() / 2 + self.b @ self.w.reshape(-1)}


@pytest.fixture
def quadratic() -> tuple[Quadratic, list[dict[str, Tensor]]]:
    torch.manual_seed(3)
    model = Quadratic()
    return model, [{"x": torch.randn(SIZE, dtype=torch.float64), "labels": torch.tensor(0)} for _ in range(7)]


def parts(model: Quadratic, examples: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, w = model.a.numpy(), model.w.detach().numpy().reshape(-1)
    x = np.stack([e["x"].numpy() for e in examples])
    return a, a @ (w - x.mean(0)) + model.b.numpy(), w


def analyzer(quadratic: Any, **settings: Any) -> SharpnessAnalyzer:
    model, examples = quadratic
    return SharpnessAnalyzer(model, examples, **{"dtype": "float64", "batch_size": 3, **settings})


@pytest.mark.parametrize("rho", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_sharpness_is_the_formulas(quadratic: Any, rho: float, adaptive: bool) -> None:
    a, g, w = parts(*quadratic)
    t = np.abs(w) + 0.01 if adaptive else np.ones(SIZE)
    epsilon = rho * t**2 * g / np.linalg.norm(t * g)
    found = analyzer(quadratic).sam_sharpness(rho, adaptive)
    assert found.value == pytest.approx(g @ epsilon + epsilon @ a @ epsilon / 2, rel=1e-12, abs=1e-12)
    assert found.norm == pytest.approx(np.linalg.norm(epsilon), rel=1e-12)
    assert math.isnan(found.standard_error)


@pytest.mark.parametrize("m", [1, 2, 7, 20])
def test_m_sharpness_has_an_epsilon_for_each_group(quadratic: Any, m: int) -> None:
    model, examples = quadratic
    groups = [examples[i : i + m] for i in range(0, 7, m)]
    rises = []
    for group in groups:
        a, g, _ = parts(model, group)
        epsilon = 0.1 * g / np.linalg.norm(g)
        rises.append(g @ epsilon + epsilon @ a @ epsilon / 2)
    expected = sum(rise * len(group) for rise, group in zip(rises, groups, strict=True)) / 7
    found = analyzer(quadratic).sam_sharpness(0.1, m=m)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.parts == pytest.approx(rises, rel=1e-10)
    assert f"m={m}" in found.name
    assert found.gradients == pytest.approx(1)  # one gradient over all examples, however they are grouped


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.1, 3.0])
def test_the_worst_case_is_the_maximum_in_the_ball(quadratic: Any, rho: float) -> None:
    """The maximum of a quadratic in a ball, from its optimality condition (lambda - A) eps = g, ||eps|| = rho."""
    from scipy.optimize import brentq

    a, g, _ = parts(*quadratic)
    values, vectors = np.linalg.eigh(a)
    along = vectors.T @ g
    length = brentq(lambda s: np.linalg.norm(along / (s - values)) - rho, values[-1] + 1e-9, values[-1] + 1e6)
    epsilon = vectors @ (along / (length - values))
    found = analyzer(quadratic).worst_case(rho, steps=60)
    assert found.value == pytest.approx(g @ epsilon + epsilon @ a @ epsilon / 2, rel=1e-3)
    assert found.norm <= rho * (1 + 1e-12)
    assert found.value >= analyzer(quadratic).sam_sharpness(rho).value


def test_the_adaptive_worst_case_stays_in_its_own_ball_and_beats_one_step(quadratic: Any) -> None:
    one = analyzer(quadratic)
    found, step = one.worst_case(0.5, adaptive=True), one.sam_sharpness(0.5, adaptive=True)
    assert found.value > step.value
    assert one.worst_case(0.5, steps=1, adaptive=True).value == pytest.approx(step.value, rel=1e-12)
    assert found.norm <= 0.5 * (np.abs(parts(*quadratic)[2]) + 0.01).max()


@pytest.mark.slow
def test_the_average_case_is_the_trace(quadratic: Any) -> None:
    found = analyzer(quadratic).average_case(0.3, n=400)
    expected = 0.3**2 * np.trace(quadratic[0].a.numpy()) / (2 * SIZE)
    assert abs(found.value - expected) <= 2 * found.standard_error
    assert found.standard_error < abs(expected)
    z = torch.randn(SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    epsilon = 0.3 * z / np.linalg.norm(z)  # the gradient's part drops out of each pair
    assert found.parts[0] == pytest.approx(epsilon @ quadratic[0].a.numpy() @ epsilon / 2, rel=1e-9)
    assert found.norm == pytest.approx(0.3)


def test_eigenvalues_trace_and_density_of_the_quadratic(quadratic: Any) -> None:
    one, values = analyzer(quadratic), np.linalg.eigvalsh(quadratic[0].a.numpy())
    np.testing.assert_allclose(one.top_eigenvalues(5).values, values[::-1][:5], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(one.top_eigenvalues(SIZE, "SA").values, values, rtol=1e-10, atol=1e-10)
    assert one.trace(3 * SIZE).value == pytest.approx(values.sum(), rel=1e-10)  # all directions are measured exactly
    density = one.density(steps=SIZE, runs=1)
    np.testing.assert_allclose(sorted(density.nodes[0]), values, atol=1e-8)


def test_for_small_rho_sam_sharpness_is_rho_times_the_norm_of_the_gradient() -> None:
    one = SharpnessAnalyzer(*build("bert"), dtype="float64")
    norm = float(one.loss_function.gradient()[1].norm())
    assert one.sam_sharpness(1e-4).value == pytest.approx(1e-4 * norm, rel=1e-3)


@pytest.mark.slow
def test_per_module_is_the_block_of_the_hessian() -> None:
    model, examples = build("bert")
    found = SharpnessAnalyzer(model, examples, dtype="float64").per_module(["encoder.layer.*", "classifier"], 300)
    assert list(found) == ["bert.encoder.layer.0", "bert.encoder.layer.1", "classifier"]
    for module, values in found.items():
        names = [n for n, _ in model.named_parameters() if n.startswith(f"{module}.")]
        block = hessian(model, examples, names)
        assert values["lambda_max"].values[0] == pytest.approx(np.linalg.eigvalsh(block)[-1], rel=1e-6)
        error = values["trace"].standard_error
        assert abs(values["trace"].value - np.trace(block)) <= 1e-8 + (0 if math.isnan(error) else 2 * error)
