# SPDX-License-Identifier: Apache-2.0
"""Are models compared in pairs, with the intervals of a paired test over seeds and a jackknife over examples?"""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel
from torch import nn

from hf_sam.robustness import RobustnessAnalyzer, add_to_card, compare, compared
from hf_sam.robustness.merging import merge_weights
from tests.robustness.data import Processor, small

QUICK: dict[str, Any] = {"bits": (4,), "shares": (), "dynamic": False}


def other(model: nn.Module, seed: int = 1) -> nn.Module:
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in changed.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
    return changed


@pytest.mark.slow
def test_one_checkpoint_each_is_compared_over_examples() -> None:
    model, examples = small("vit")
    examples = examples * 4
    found = compare({"a": model, "b": other(model)}, examples, folds=len(examples), conditions=QUICK)
    assert (found.baseline, found.over) == ("a", "examples")
    right = {}
    for name in ("a", "b"):
        answers = found.reports[name][0]["int4 weights"].predictions
        right[name] = (answers.logits.argmax(1) == answers.labels).astype(float)
    interval = ttest_rel(right["b"], right["a"]).confidence_interval(0.95)  # with a fold an example it is the t-test
    difference = found.differences["int4 weights"]["accuracy"]["b"]
    assert difference.mean == pytest.approx(right["b"].mean() - right["a"].mean())
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
    drop = found.drops["int4 weights"]["accuracy"]["b"]
    lost = [found.reports[name][0].drop("int4 weights", "accuracy") for name in ("b", "a")]
    assert drop.mean == pytest.approx(lost[0] - lost[1])
    assert found.drops["as trained"]["nll"]["b"].mean == 0
    json.dumps(found.as_dict(), allow_nan=False)


def test_several_seeds_are_compared_in_pairs() -> None:
    model, examples = small("vit")
    ours, theirs = [other(model, i) for i in (1, 2, 3)], [other(model, i) for i in (4, 5, 6)]
    found = compare({"adamw": theirs, "sam": ours}, examples, conditions=QUICK)
    assert found.over == "seeds"
    values = {
        name: [report["int4 weights"].scores["nll"] for report in found.reports[name]] for name in ("sam", "adamw")
    }
    interval = ttest_rel(values["sam"], values["adamw"]).confidence_interval(0.95)
    difference = found.differences["int4 weights"]["nll"]["sam"]
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
    assert found.mean("int4 weights", "nll", "sam") == pytest.approx(np.mean(values["sam"]))
    assert found.mean("int4 weights", "roc_auc", "sam") is not None


def test_a_shifted_set_may_be_smaller_than_the_folds() -> None:
    model, examples = small("vit")
    asked = {**QUICK, "bits": (), "shifted": {"few": examples[:4]}}
    found = compare({"a": model, "b": other(model)}, examples, calibration=examples[:5], conditions=asked)
    assert "nll_scaled" in found.differences["few"]
    assert "temperature" not in found.differences["few"]  # it is from other examples
    a, b = (found.reports[name][0].drop("few", "nll") for name in "ab")
    drop = found.drops["few"]["nll"]["b"]
    assert drop.mean == pytest.approx(b - a)
    assert drop.low < drop.mean < drop.high


def test_a_model_does_not_differ_from_itself() -> None:
    model, examples = small("bert")
    found = compare({"a": model, "b": model}, examples, folds=3, conditions=QUICK)
    for metrics in found.differences.values():
        assert all((d["b"].mean, d["b"].low, d["b"].high) == (0, 0, 0) for d in metrics.values())


@pytest.mark.parametrize(
    ("models", "settings", "message"),
    [
        (1, {}, "two models or more, got 1"),
        (2, {"folds": 1}, r"folds=...\)` must be a whole number >= 2, got 1"),
        (2, {"baseline": "c"}, r"baseline=...\)` must be one of a, b, got 'c'"),
    ],
)
def test_bad_arguments_are_refused(models: int, settings: dict[str, Any], message: str) -> None:
    model, examples = small("vit")
    named = dict(zip("ab"[:models], [model] * models, strict=True))
    with pytest.raises(ValueError, match=message):
        compare(named, examples, conditions=QUICK, **settings)


def test_reports_that_do_not_belong_together_are_refused() -> None:
    model, examples = small("vit")
    first = RobustnessAnalyzer(model, examples).report(**QUICK)
    fewer = RobustnessAnalyzer(model, examples[:5]).report(**QUICK)
    with pytest.raises(ValueError, match="the same examples for each, got 5, 9"):
        compared({"a": [first], "b": [fewer]})
    alone = RobustnessAnalyzer(model, examples[:1]).report(**QUICK)
    with pytest.raises(ValueError, match="needs two examples or more for an interval, got 1"):
        compared({"a": [alone], "b": [alone]})
    with pytest.raises(ValueError, match="the same seeds for each"):
        compared({"a": [first], "b": [first, first]})


# ----------------------------------------------------------------------------------------------------------------------
# Merging
# ----------------------------------------------------------------------------------------------------------------------
def test_merged_weights_are_the_mean_or_the_origin_and_a_share_of_the_ways() -> None:
    origin, _ = small("bert")
    one, two = other(origin, 1), other(origin, 2)
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in (origin, one, two)]
    mean, sum_ = copy.deepcopy(one), copy.deepcopy(one)
    merge_weights(mean, [states[2]], None, None)
    merge_weights(sum_, [states[2]], states[0], 0.3)
    for name, value in mean.state_dict().items():
        w0, w1, w2 = (each[name] for each in states)
        torch.testing.assert_close(value, (w1 + w2) / 2)
        torch.testing.assert_close(sum_.state_dict()[name], w0 + 0.3 * ((w1 - w0) + (w2 - w0)))


def test_a_head_for_other_labels_stays_and_other_models_are_refused() -> None:
    from tests.sharpness.models import bert

    model, examples = small("bert")
    head = model.classifier.weight.detach().clone()
    one = RobustnessAnalyzer(model, examples)
    others = bert(num_labels=5).float()
    assert one.merged([others]).changed == pytest.approx(1, abs=0.1)
    merged = copy.deepcopy(model)
    merge_weights(merged, [others.state_dict()], None, None)
    assert torch.equal(merged.classifier.weight, head)
    with pytest.raises(ValueError, match="needs checkpoints of one origin"):
        one.merged([small("vit")[0]])


@pytest.mark.slow
def test_checkpoints_are_loaded_and_a_drawn_head_is_not_merged(tmp_path: Any) -> None:
    from tests.sharpness.test_untouched import streams

    model, examples = small("bert")
    origin = small("bert")[0]
    origin.save_pretrained(tmp_path / "whole")
    origin.bert.save_pretrained(tmp_path / "pretrained")
    one = RobustnessAnalyzer(other(model), examples)
    drawn = streams()
    found = one.merged([tmp_path / "whole"])
    assert found.scores == one.merged([origin]).scores
    headless = one.merged([tmp_path / "whole"], origin=tmp_path / "pretrained", alpha=0.5)
    assert headless.changed < found.changed
    assert streams() == drawn
    small("vit")[0].save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="is a vit model, and the one that is measured is bert"):
        one.merged([tmp_path / "vit"])


# ----------------------------------------------------------------------------------------------------------------------
# The model card
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_card_has_one_section_of_the_last_report(tmp_path: Any) -> None:
    model, examples = small("vit")
    report = RobustnessAnalyzer(model, examples, processing_class=Processor(), calibration=examples[:4]).report(**QUICK)
    (tmp_path / "README.md").write_text("# Model\n\nText.\n", encoding="utf-8")
    add_to_card(tmp_path, report)
    add_to_card(tmp_path, report)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.count("### Robustness") == 1
    assert text.startswith("# Model\n\nText.\n")
    assert "| int4 weights |" in text
    assert "| Calibration error, scaled |" in text
    assert "The temperature was fitted on 4 other examples." in text
