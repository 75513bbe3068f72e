# SPDX-License-Identifier: Apache-2.0
"""Which variants and options are tested, and on what? A new variant in VARIANTS is here without another line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_sam import VARIANTS, Variant
from hf_sam.variants import make_variant
from hf_sam.vectors.vectors import Ascent

RHO = 0.3

# Further options worth the same checks; a variant's defaults are always checked.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "asam": [{"eta": 0.0}, {"eta": 0.5}],
    "gsam": [{"alpha": 0.0}, {"alpha": 3.0}],
    "friendly": [{"sigma": 0.5, "lmbda": 0.6}, {"sigma": 0.0, "lmbda": 0.0}],
    "looksam": [{"k": 1, "alpha": 0.7}],
}
# Other test modules add directions of their own, which keep other rules.
NAMES = [name for name, variant in VARIANTS.items() if variant.__module__.startswith("hf_sam.")]
# Those that climb along a gradient. The others have rules of their own.
TWO_PASS = [name for name in NAMES if VARIANTS[name].passes == "two"]
CASES = [(name, options) for name in TWO_PASS for options in [{}, *OPTIONS.get(name, [])]]

every_case = pytest.mark.parametrize(("name", "options"), CASES, ids=str)
every_combining_case = pytest.mark.parametrize(
    ("name", "options"), [case for case in CASES if VARIANTS[case[0]].combines], ids=str
)
every_remembering_case = pytest.mark.parametrize(
    ("name", "options"), [case for case in CASES if VARIANTS[case[0]].remembers], ids=str
)
every_name = pytest.mark.parametrize("name", NAMES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])

SHAPES = {"layer.weight": (8, 6), "layer.bias": (8,), "norm.weight": (8,), "scalar": ()}


class Problem:
    """Weights, two gradients and a fresh variant that knows the weights' names."""

    def __init__(self, name: str, options: dict[str, Any], dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(7)
        self.names = list(SHAPES)
        self.w, self.g, self.h = (
            [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in SHAPES.values()]
            for _ in range(3)
        )
        self.w = [nn.Parameter(w) for w in self.w]
        self.make: Callable[[], Variant] = lambda: self.prepared(make_variant(name, options))
        self.variant = self.make()

    def prepared(self, variant: Variant) -> Variant:
        variant.prepare(list(zip(self.names, self.w, strict=True)))
        return variant

    def ascend(self, scale: float = 1.0, rho: float = RHO, variant: Variant | None = None) -> Ascent:
        """Climb, with a fresh variant by default; it gets copies, because it may overwrite the gradient."""
        return (variant or self.make()).ascend(self.w, [g * scale for g in self.g], rho)

    def combine(self, g: list[Tensor], h: list[Tensor]) -> list[Tensor]:
        """Return what a variant that has climbed along g makes of g and h, of which it gets copies."""
        variant = self.make()
        variant.ascend(self.w, [x.clone() for x in g], RHO)
        return variant.combine([x.clone() for x in g], [x.clone() for x in h])

    def recover(self, epsilon: list[Tensor]) -> None:
        """Turn epsilon into the gradient; some signatures take the weights beside the parameters."""
        method = self.variant.recover_gradient_
        beside = [[p.detach() for p in self.w]] if "w" in inspect.signature(method).parameters else []
        method(self.w, *beside, epsilon)
