# SPDX-License-Identifier: Apache-2.0
"""Do the figures show what was measured, with labels and units?"""

from __future__ import annotations

import numpy as np
import pytest

from hf_sam.sharpness import Density, Interpolation, Landscape, plots

X = [-1.0, 0.0, 1.0]


def square(height: float) -> Landscape:
    return Landscape(x=X, y=X, losses=[[height + a * a + b * b for a in X] for b in X])


def test_the_spectrum_has_a_line_per_model() -> None:
    density = Density(nodes=[[-0.1, 0.0, 3.0]], weights=[[0.1, 0.8, 0.1]])
    figure = plots.spectrum({"adamw": density, "sam": density})
    (axes,) = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["adamw", "sam"]
    assert axes.get_yscale() == "log"
    at, curve = axes.get_lines()[0].get_data()
    assert np.trapezoid(curve, at) == pytest.approx(1, abs=0.01)
    assert "eigenvalue" in axes.get_xlabel()


def test_a_line_and_a_square_of_the_landscape() -> None:
    (axes,) = plots.landscape_1d({"sam": Landscape(x=X, losses=[2.0, 1.0, 2.0])}).axes
    assert list(axes.get_lines()[0].get_ydata()) == [2, 1, 2]
    first, second, bar = plots.landscape_2d({"adamw": square(0.1), "sam": square(0.2)}).axes
    assert [axes.get_title() for axes in (first, second)] == ["adamw", "sam"]
    assert bar.get_ylabel() == "loss"
    panels = plots.surface({"adamw": square(0.1), "sam": square(0.2)}).axes
    assert [axes.get_zlim() for axes in panels] == [panels[0].get_zlim()] * 2  # one height for both


def test_the_way_between_models_has_loss_and_metric() -> None:
    line = Interpolation(t=[0, 0.5, 1], losses=[1, 3, 2], metrics=[0.9, 0.5, 0.8], barrier=1.5)
    losses, metrics = plots.interpolation({"adamw to sam": line}, "accuracy").axes
    assert (losses.get_ylabel(), metrics.get_ylabel()) == ("loss", "accuracy")
    assert list(metrics.get_lines()[0].get_ydata()) == [0.9, 0.5, 0.8]


def test_what_the_callback_logged_over_training() -> None:
    history = [
        {"step": 0, "sharpness/lambda_max": 5.0},
        {"step": 1, "loss": 1.0},
        {"step": 2, "sharpness/lambda_max": 3.0},
    ]
    (axes,) = plots.over_training({"sam": history}).axes
    assert [list(values) for values in axes.get_lines()[0].get_data()] == [[0, 2], [5, 3]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer step", "lambda_max")
