# SPDX-License-Identifier: Apache-2.0
"""Are eigenvalues, trace and density those of the Hessian written out?"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from transformers import T5ForConditionalGeneration

from hf_sam.sharpness import SharpnessAnalyzer
from tests.sharpness.models import FAMILIES, build, hessian

families = pytest.mark.parametrize(
    "family", [name if name == "bert" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
# The products are those of the Hessian for every family: what is made of them needs two.
two_families = pytest.mark.parametrize(
    "family", [n if n in ("bert", "resnet") else pytest.param(n, marks=pytest.mark.everything) for n in FAMILIES]
)
attentions = pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
CLOSE = 1e-8  # relative to the largest eigenvalue


@functools.cache
def matrix(family: str, attention: str = "sdpa") -> np.ndarray:
    return hessian(*build(family, **attending(family, attention)))


@functools.cache
def truth(family: str, attention: str = "sdpa") -> np.ndarray:
    return np.linalg.eigvalsh(matrix(family, attention))


def attending(family: str, attention: str) -> dict[str, str]:
    if family == "resnet":
        return {}
    eager = family == "t5" and not T5ForConditionalGeneration._supports_sdpa  # before transformers 5.6
    return {"attn_implementation": "eager" if eager else attention}


def analyzer(family: str, attention: str = "sdpa", batch_size: int = 4) -> SharpnessAnalyzer:
    model, examples = build(family, **attending(family, attention))
    return SharpnessAnalyzer(model.train(), examples, dtype="float64", batch_size=batch_size)


@pytest.mark.slow
@families
@attentions
def test_the_largest_eigenvalues(family: str, attention: str) -> None:
    found = analyzer(family, attention).top_eigenvalues(5, tol=1e-6)
    expected = truth(family, attention)[::-1][:5]
    np.testing.assert_allclose(found.values, expected, atol=CLOSE * expected[0], rtol=0)
    assert max(found.residuals) <= 1e-6 * expected[0] * 2


@pytest.mark.slow
@families
def test_the_largest_one_in_ten_products_by_default(family: str) -> None:
    found = analyzer(family).top_eigenvalues()
    assert found.values[0] == pytest.approx(truth(family)[-1], rel=1e-6)
    assert found.products <= 16


@pytest.mark.slow
@two_families
def test_the_smallest_one(family: str) -> None:
    found = analyzer(family).min_eigenvalue(tol=1e-6)
    assert found.values[0] == pytest.approx(truth(family)[0], abs=CLOSE * truth(family)[-1])


@pytest.mark.slow
@two_families
def test_the_largest_in_magnitude(family: str) -> None:
    found = analyzer(family).top_eigenvalues(2, "LM", tol=1e-6)
    expected = sorted(truth(family), key=abs, reverse=True)[:2]
    np.testing.assert_allclose(found.values, expected, atol=CLOSE * abs(expected[0]), rtol=0)


@pytest.mark.slow
@two_families
def test_the_trace_within_two_standard_errors(family: str) -> None:
    found = analyzer(family).trace(120)
    assert abs(found.value - truth(family).sum()) <= 2 * found.standard_error
    assert found.products == 120
    assert found.draws == 40


@pytest.mark.slow
@two_families
def test_the_density(family: str) -> None:
    found = analyzer(family).density(steps=50, runs=2)
    values, vectors = np.linalg.eigh(matrix(family))
    starts = torch.Generator().manual_seed(0)
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        start = 2.0 * torch.randint(0, 2, (len(values),), generator=starts, dtype=torch.int8).numpy() - 1
        seen = (vectors.T @ start) ** 2 / len(values)  # the share of each eigenvalue in this start
        assert wasserstein_distance(nodes, values, weights, seen) <= 2e-3 * np.ptp(values)
        for power in (1, 2, 5):  # quadrature is exact for polynomials
            scale = np.abs(values).max() ** power
            assert np.dot(weights, np.power(nodes, power)) / scale == pytest.approx(np.dot(seen, values**power) / scale)
    at, curve = found.curve()
    assert np.trapezoid(curve, at) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.everything  # a matrix of six thousand rows, and its eigenvalues
def test_the_density_of_six_thousand_parameters() -> None:
    model, examples = build("bert", hidden_size=16, intermediate_size=32)
    values = np.linalg.eigvalsh(hessian(model, examples))
    found = SharpnessAnalyzer(model, examples, dtype="float64").density(steps=50, runs=4)
    distance = wasserstein_distance(np.concatenate(found.nodes), values, np.concatenate(found.weights))
    assert distance <= 1e-3 * values[-1]


@pytest.mark.slow
@families
def test_the_products_are_the_matrix_times_the_vectors(family: str) -> None:
    loss_function = analyzer(family).loss_function
    vectors = torch.randn(3, loss_function.size, dtype=torch.float64)
    expected = vectors @ torch.as_tensor(matrix(family))
    torch.testing.assert_close(loss_function.products(vectors), expected, rtol=1e-10, atol=1e-11)


@families
def test_the_batch_size_changes_nothing(family: str) -> None:
    rounding = 1e-12
    v = None
    found = []
    for size in (1, 4, 9):
        loss_function = analyzer(family, batch_size=size).loss_function
        v = torch.randn(1, loss_function.size, dtype=torch.float64) if v is None else v
        found.append((loss_function.loss(), loss_function.gradient()[1], loss_function.products(v)[0]))
    for loss, gradient, product in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=rounding)
        assert (gradient - found[0][1]).norm() <= rounding * gradient.norm()
        assert (product - found[0][2]).norm() <= rounding * product.norm()
