# SPDX-License-Identifier: Apache-2.0
"""Does a looped test run all of its cases, and tell every one that fails?"""

from __future__ import annotations

import inspect

import pytest
import torch

from tests.looped import looped

SEEN: list[tuple[int, str]] = []


@pytest.mark.parametrize("letter", ["a", "b"])
@pytest.mark.parametrize("number", range(3))
def pairs(number: int, letter: str) -> None:
    SEEN.append((number, letter))


@pytest.mark.parametrize(("left", "right"), [(1, 1), (1, 2), pytest.param(3, 3), (4, 5)])
def equal(left: int, right: int) -> None:
    assert left == right


def test_every_combination_runs_once() -> None:
    SEEN.clear()
    looped(pairs)()
    assert sorted(SEEN) == [(number, letter) for number in range(3) for letter in "ab"]


def test_all_failures_are_told_with_their_cases() -> None:
    with pytest.raises(AssertionError) as failed:
        looped(equal)()
    message = str(failed.value)
    assert message.startswith("2 of 4 cases failed")
    assert "{'left': 1, 'right': 2}" in message
    assert "{'left': 4, 'right': 5}" in message
    assert "assert left == right" in message
    assert "{'left': 3, 'right': 3}" not in message


def test_an_error_in_one_case_does_not_hide_the_others() -> None:
    @pytest.mark.parametrize("divisor", [0, 1, 2])
    def divides(divisor: int) -> None:
        assert 1 // divisor == 1

    with pytest.raises(AssertionError, match="2 of 3 cases failed") as failed:
        looped(divides)()
    assert "ZeroDivisionError" in str(failed.value)


def test_each_case_starts_from_the_same_streams() -> None:
    drawn: list[float] = []

    @pytest.mark.parametrize("case", range(3))
    def draws(case: int) -> None:
        drawn.append(torch.rand(()).item())

    looped(draws)()
    assert len(drawn) == 3
    assert len(set(drawn)) == 1


def test_fixtures_and_marks_stay() -> None:
    @pytest.mark.slow
    @pytest.mark.parametrize("case", [1])
    def uses(tmp_path: str, case: int) -> None:
        assert tmp_path == "there"

    made = looped(uses)
    assert list(inspect.signature(made).parameters) == ["tmp_path"]
    assert [mark.name for mark in made.pytestmark] == ["slow"]
    made(tmp_path="there")


def test_no_case_at_all_is_no_success() -> None:
    @pytest.mark.parametrize("case", [])
    def never(case: int) -> None: ...

    with pytest.raises(AssertionError, match="no case"):
        looped(never)()


def test_a_case_with_a_mark_is_refused() -> None:
    @pytest.mark.parametrize("case", [pytest.param(1, marks=pytest.mark.slow)])
    def marked(case: int) -> None: ...

    with pytest.raises(TypeError, match="marks"):
        looped(marked)
