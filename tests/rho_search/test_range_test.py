# SPDX-License-Identifier: Apache-2.0
"""How does the result of `find_rho` look: in a terminal, in a notebook, as a picture?"""

from __future__ import annotations

import math
import re
import sys

import pytest

from hf_sam import RangeTest

RISES = ((0.02, 0.04, 0.2), (0.06, 0.16, math.inf))


def result_of(rho: float = 0.2, variant: str = "sam") -> RangeTest:
    return RangeTest(rho, "It <rises>.", 0.05, variant, 30, (0.1, 0.2, 0.4), (2.0, 2.0), RISES, 12.345)


def test_the_representation_is_one_line_without_what_was_measured() -> None:
    expected = "RangeTest(rho=0.2, variant='sam', share=0.05, steps=30, batches=2, radii=3, seconds=12.3)"
    assert repr(result_of()) == expected


def test_printing_it_shows_the_reason_and_a_row_for_each_radius() -> None:
    reason, blank, head, *rows = str(result_of()).splitlines()
    assert (reason, blank) == ("It <rises>.", "")
    assert re.split(" {2,}", head.strip()) == ["rho", "mean rise of the loss", "least of a batch", "most"]
    assert [row.split() for row in rows] == [
        ["0.1", "2", "%", "1", "%", "3", "%"],
        ["0.2", "5", "%", "2", "%", "8", "%", "start", "with"],
        ["0.4", "inf", "%", "10", "%", "inf", "%"],
    ]


def test_a_recommendation_between_two_radii_has_a_row_of_its_own() -> None:
    rows = str(result_of(rho=0.15)).splitlines()[3:]
    assert [row.split()[0] for row in rows] == ["0.1", "0.15", "0.2", "0.4"]
    assert [row.endswith("start with") for row in rows] == [False, True, False, False]


def test_a_notebook_shows_the_same_as_a_table() -> None:
    shown = result_of(variant="asam")._repr_html_()
    assert "<b>Start with rho = 0.2</b> for asam. It &lt;rises&gt;." in shown
    assert shown.count("<tr>") == 4
    assert shown.count("start with") == 1


def test_plot_draws_on_axes_of_ones_own_or_on_new_ones() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    own = pyplot.figure().add_subplot()
    assert result_of().plot(own) is own
    assert len(own.lines) == 5  # two batches, their mean, the limit, the recommendation
    new = result_of().plot()
    assert (new is not own, len(new.lines)) == (True, 5)
    pyplot.close("all")


def test_plot_without_matplotlib_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "hf_sam.rho_search.range_plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-sam\[sharpness\]'"):
        result_of().plot()
