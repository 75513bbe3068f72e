# SPDX-License-Identifier: Apache-2.0
"""Which cases of a full product run on each commit, which in `make test-slow`, and which only in test-everything?"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def covering(product: Iterable[tuple[Any, ...]], fast: Collection[Any] = (), slow: Collection[Any] = ()) -> list[Any]:
    """Return a product's cases: those of `fast` as they are, those of `slow` marked so, the others `everything`."""
    cases = list(product)
    unknown = [case for case in [*fast, *slow] if case not in cases]
    if unknown:
        raise ValueError(f"no case of the product: {unknown}")

    def marks(case: Any) -> Any:
        return () if case in fast else pytest.mark.slow if case in slow else pytest.mark.everything

    return [pytest.param(*case, marks=marks(case)) for case in cases]
