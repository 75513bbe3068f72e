# SPDX-License-Identifier: Apache-2.0
"""Are checkpoints compared on the same examples, fold by fold, and are the differences those of a paired test?"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from hf_sam.sharpness import SharpnessAnalyzer, compare, interpolate, landscape_1d, landscape_2d
from hf_sam.sharpness.landscape import filter_direction
from tests.sharpness.models import build


def other(model: torch.nn.Module) -> torch.nn.Module:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for p in changed.parameters():
            p.mul_(1.1)
    return changed


@pytest.mark.slow
def test_values_are_those_of_the_folds_and_differences_those_of_a_paired_t_test() -> None:
    model, examples = build("bert")
    found = compare(
        {"a": model, "b": other(model)}, examples, folds=3, dtype="float64", measures=["loss", "lambda_max"]
    )
    assert (found.baseline, found.folds) == ("a", [3, 3, 3])
    for i in range(3):
        one = SharpnessAnalyzer(other(model), examples[i::3], dtype="float64")
        assert found.values["loss"]["b"][i] == pytest.approx(one.loss(), rel=1e-12)
        assert found.values["lambda_max"]["b"][i] == pytest.approx(one.top_eigenvalues().values[0], rel=1e-9)
    for measure, values in found.values.items():
        interval = ttest_rel(values["b"], values["a"]).confidence_interval(0.95)
        difference = found.differences[measure]["b"]
        assert difference.mean == pytest.approx(np.mean(values["b"]) - np.mean(values["a"]))
        assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.slow
def test_a_model_does_not_differ_from_itself() -> None:
    model, examples = build("bert")
    found = compare(
        {"a": model, "b": model}, examples, folds=2, measures=["sam_sharpness", "gradient_norm", "worst_case"]
    )
    for differences in found.differences.values():
        assert (differences["b"].mean, differences["b"].low, differences["b"].high) == (0, 0, 0)


def test_checkpoints_are_loaded(tmp_path: Path) -> None:
    model, examples = build("bert")
    model.float().save_pretrained(tmp_path)
    found = compare({"folder": tmp_path, "model": model}, examples, folds=2, measures=["loss"], baseline="model")
    assert found.differences["loss"]["folder"].mean == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 1}, "folds=...\\)` must be a whole number >= 2, got 1"),
        ({"folds": 10}, "folds=...\\)` must be at most 9"),
        ({"measures": ["flatness"]}, "measures=...\\)` must be one of loss, "),
        ({"baseline": "c"}, "baseline=...\\)` must be one of a, b, got 'c'"),
        ({"models": {"a": None}}, "two models or more, got 1"),
    ],
)
def test_bad_arguments_are_refused(settings: dict[str, Any], message: str) -> None:
    model, examples = build("bert")
    models = settings.pop("models", {"a": model, "b": model})
    with pytest.raises(ValueError, match=message):
        compare(models, examples, **settings)


def test_interpolation_passes_through_both_models_and_has_the_barrier_between() -> None:
    model, examples = build("bert")
    end = other(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def measure(between: torch.nn.Module) -> tuple[float, float]:
        return SharpnessAnalyzer(between, examples, dtype="float64").loss(), float(between.classifier.bias[0])

    found = interpolate(model, end, measure, points=5)
    assert found.t == [0, 0.25, 0.5, 0.75, 1]
    assert (found.losses[0], found.losses[-1]) == (measure(model)[0], measure(end)[0])
    line = np.interp(found.t, [0, 1], [found.losses[0], found.losses[-1]])
    assert found.barrier == pytest.approx(max(0, *(np.array(found.losses) - line)))
    assert found.metrics[2] == pytest.approx(float(model.classifier.bias[0]) * 1.05)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="same tensors"):
        interpolate(model, build("gpt2")[0], measure)


def test_a_barrier_is_found() -> None:
    model, examples = build("bert")
    flipped = copy.deepcopy(model)
    with torch.no_grad():  # the same function, with the units of a layer in another order
        layer = flipped.bert.encoder.layer[0]
        order = torch.arange(7, -1, -1)
        layer.intermediate.dense.weight.copy_(layer.intermediate.dense.weight[order])
        layer.intermediate.dense.bias.copy_(layer.intermediate.dense.bias[order])
        layer.output.dense.weight.copy_(layer.output.dense.weight[:, order])
    found = interpolate(model, flipped, lambda m: SharpnessAnalyzer(m, examples, dtype="float64").loss())
    assert found.losses[0] == pytest.approx(found.losses[-1], rel=1e-12)
    rise = max(found.losses) - found.losses[0]  # the line between the ends is level but for their last digits
    assert rise > 1e-6
    assert found.barrier == pytest.approx(rise, abs=1e-12)


def test_directions_have_the_norms_of_the_rows_and_are_shared() -> None:
    model, _ = build("bert")
    names, params = zip(*model.named_parameters(), strict=True)
    direction = filter_direction(names, params, 0)
    start = 0
    for p in params:
        piece = direction[start : start + p.numel()].view(p.shape)
        start += p.numel()
        if p.dim() < 2:
            assert not piece.any()
        else:
            torch.testing.assert_close(piece.flatten(1).norm(dim=1), p.flatten(1).norm(dim=1))
    assert not torch.equal(direction, filter_direction(names, params, 1))
    same_shape = dict(zip(names, direction.split([p.numel() for p in params]), strict=True))
    query, key = (same_shape[f"bert.encoder.layer.0.attention.self.{part}.weight"] for part in ("query", "key"))
    assert torch.nn.functional.cosine_similarity(query, key, dim=0).abs() < 0.9
    doubled = [2 * p for p in params]
    torch.testing.assert_close(filter_direction(names, doubled, 0), 2 * direction)


def test_landscapes_are_the_loss_on_the_grid() -> None:
    model, examples = build("bert")
    one = SharpnessAnalyzer(model, examples, dtype="float64")
    line = landscape_1d(one, span=0.5, points=3)
    square = landscape_2d(one, span=0.5, points=3)
    assert line.x == square.x == square.y == [-0.5, 0, 0.5]
    assert line.losses[1] == square.losses[1][1] == one.loss()
    assert line.losses == pytest.approx(square.losses[1])  # the first direction is the same
    assert line.evaluations == 3
    direction = filter_direction(one.loss_function.names, one.loss_function.parameters, 0)
    second = filter_direction(one.loss_function.names, one.loss_function.parameters, 1)
    moved = copy.deepcopy(model)
    offset = one.loss_function.split(-0.5 * direction + 0.5 * second)
    with torch.no_grad():
        for p, e in zip(moved.parameters(), offset, strict=True):
            p.add_(e)
    assert square.losses[2][0] == pytest.approx(SharpnessAnalyzer(moved, examples, dtype="float64").loss(), rel=1e-12)


@pytest.mark.parametrize(("settings", "name"), [({"span": 0}, "span"), ({"points": 0}, "points")])
def test_bad_landscapes_are_refused(settings: dict[str, Any], name: str) -> None:
    one = SharpnessAnalyzer(*build("bert"))
    for draw in (landscape_1d, landscape_2d):
        with pytest.raises(ValueError, match=f"{name}=...\\)` must be"):
            draw(one, **settings)
