# SPDX-License-Identifier: Apache-2.0
"""One test for a whole matrix of cases: each of them runs, and the failures are told together.

For pure functions, where the machinery around a test takes longer than the test. `@looped` stands above the
`parametrize` marks of a test and takes their place; fixtures are made once, for all the cases.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import product
from typing import Any

import pytest
from transformers import set_seed

TOLD = 10  # failures told in full; of the others only the case


def cases_of(mark: pytest.Mark) -> list[dict[str, Any]]:
    """Return the arguments of each case of one `parametrize` mark."""
    names, values = mark.args
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    several = len(names) > 1 or "," in str(mark.args[0])
    found = []
    for value in values:
        if hasattr(value, "marks"):  # pytest.param
            if value.marks:
                raise TypeError("a case of a looped test cannot have marks of its own")
            value = value.values if several else value.values[0]
        found.append(dict(zip(names, value if several else [value], strict=True)))
    return found


def combinations(marks: list[pytest.Mark]) -> Iterator[dict[str, Any]]:
    """Yield the arguments of every combination, in the order in which pytest would run them."""
    for chosen in product(*(cases_of(mark) for mark in marks)):
        yield {name: value for case in reversed(chosen) for name, value in case.items()}


def looped(test: Callable[..., None]) -> Callable[..., None]:
    """Run every case of a parametrized test in one test, each from the same random streams."""
    marks = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    cases = list(combinations(marks))

    @wraps(test)
    def run(**fixtures: Any) -> None:
        failures: list[str] = []
        for case in cases:
            set_seed(0)
            try:
                test(**fixtures, **case)
            except Exception:  # noqa: BLE001 - told below, with the others
                told = traceback.format_exc(limit=-1) if len(failures) < TOLD else ""
                failures.append(f"{case}\n{told}")
        assert cases, "there is no case"
        assert not failures, f"{len(failures)} of {len(cases)} cases failed:\n" + "\n".join(failures)

    given = {name for case in cases[:1] for name in case}
    fixtures = [p for name, p in inspect.signature(test).parameters.items() if name not in given]
    run.__signature__ = inspect.Signature(fixtures)  # what pytest reads
    run.pytestmark = [mark for mark in test.pytestmark if mark.name != "parametrize"]
    del run.__wrapped__
    return run
