# SPDX-License-Identifier: Apache-2.0
"""Which numbers go into a report?"""

from __future__ import annotations

from typing import Any


def summary_of(analyzer: Any, rho: float, k: int, products: int, steps: int) -> dict[str, Any]:
    """Return the numbers of `SharpnessAnalyzer.report`; its arguments."""
    loss, gradient = analyzer.problem.gradient()
    weights = float(analyzer.problem.weights().norm())
    k = min(k, analyzer.problem.size)
    top = analyzer.top_eigenvalues(k)
    results = {"top_eigenvalues": top, "trace": analyzer.trace(products), "sam_sharpness": analyzer.sam_sharpness(rho)}
    return {
        "settings": dict(analyzer.settings),
        "loss": loss,
        "gradient_norm": float(gradient.norm()),
        "weight_norm": weights,
        "lambda_max": top.values[0],
        "lambda_max_relative": top.values[0] * weights**2 / analyzer.problem.size,
        f"lambda_max / lambda_{k}": top.values[0] / top.values[-1] if top.values[-1] else None,
        **{name: result.as_dict() for name, result in results.items()},
        "worst_case": analyzer.worst_case(rho, steps).as_dict(),
    }
