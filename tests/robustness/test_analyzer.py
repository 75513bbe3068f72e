# SPDX-License-Identifier: Apache-2.0
"""Are the right answers measured, in the right order, of every kind of model, and wrong use told in a line?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForTokenClassification, T5Config, T5ForConditionalGeneration

from hf_sam.robustness import RobustnessAnalyzer
from hf_sam.robustness.extras import needed
from tests.robustness.data import Processor, small
from tests.sharpness.models import all_in_one


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_answers_are_the_models_own_in_the_order_of_the_examples(family: str) -> None:
    model, examples = small(family)
    found = RobustnessAnalyzer(model, examples, batch_size=4).as_trained()
    batch = all_in_one(examples)
    with torch.no_grad():
        output = model(**batch)
    np.testing.assert_allclose(found.predictions.logits, output.logits.numpy(), atol=1e-5)
    assert found.predictions.labels.tolist() == batch["labels"].tolist()
    assert found.scores["nll"] == pytest.approx(float(output.loss), rel=1e-5)
    assert found.examples == len(examples)


def test_texts_of_several_lengths_come_back_in_order() -> None:
    model, examples = small("bert")
    cut = [{k: v[: 3 + i % 4] if v.dim() else v for k, v in e.items()} for i, e in enumerate(examples)]
    for row in cut:
        row["attention_mask"] = torch.ones_like(row["input_ids"])

    def collator(rows: list[Any]) -> dict[str, Any]:
        columns = {k: [row[k] for row in rows] for k in ("input_ids", "attention_mask")}
        padded = {k: nn.utils.rnn.pad_sequence(v, batch_first=True) for k, v in columns.items()}
        return {**padded, "labels": torch.stack([row["labels"] for row in rows])}

    found = RobustnessAnalyzer(model, cut, collator, batch_size=2).as_trained().predictions
    with torch.no_grad():
        one_by_one = [model(**{k: v[None] for k, v in row.items()}).logits[0].numpy() for row in cut]
    np.testing.assert_allclose(found.logits, one_by_one, atol=1e-5)


def test_perplexity_is_that_of_the_models_loss() -> None:
    model, examples = small("gpt2")
    found = RobustnessAnalyzer(model, examples, batch_size=len(examples)).as_trained()
    with torch.no_grad():
        loss = model(**all_in_one(examples)).loss
    assert found.scores["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-5)
    assert found.reliability == []
    counts = np.bincount(found.predictions.example)
    assert counts.tolist() == [int((e["labels"][1:] != -100).sum()) for e in examples]


def test_a_subclass_of_a_language_model_is_one() -> None:
    model, examples = small("gpt2")
    model.__class__ = type("Ours", (type(model),), {})
    assert RobustnessAnalyzer(model, examples).kind == "causal_lm"
    assert RobustnessAnalyzer(nn.DataParallel(model), examples).kind == "causal_lm"


def test_a_regressor_and_a_classifier_of_several_labels() -> None:
    from tests.sharpness.models import bert

    _, examples = small("bert")
    numbers = [{**row, "labels": float(i)} for i, row in enumerate(examples)]
    found = RobustnessAnalyzer(bert(num_labels=1), numbers).report(shares=(0.5,), bits=(4,))
    assert found.settings["kind"] == "regression"
    assert set(found["as trained"].scores) == {"rmse", "mae", "r2", "pearson", "spearman"}
    several = [{**row, "labels": torch.tensor([1.0, 0.0, float(i % 2)])} for i, row in enumerate(examples)]
    model = bert(num_labels=3, problem_type="multi_label_classification")
    one = RobustnessAnalyzer(model, several)
    assert one.kind == "multilabel"
    assert one.as_trained().scores["roc_auc"] is not None


def test_tokens_that_have_no_label_do_not_count() -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=12, hidden_size=6, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    _, examples = small("gpt2")
    rows = [{**e, "labels": torch.where(e["labels"] < 0, e["labels"], e["labels"] % 2)} for e in examples]
    found = RobustnessAnalyzer(BertForTokenClassification(config), rows).as_trained()
    assert len(found.predictions.labels) == sum(int((row["labels"] >= 0).sum()) for row in rows)
    assert found.examples == len(rows)


def test_the_temperature_comes_from_the_other_examples() -> None:
    model, examples = small("vit")
    one = RobustnessAnalyzer(model, examples[:5], calibration=examples[5:])
    scores = one.as_trained().scores
    assert scores["temperature"] == one.on(examples, "all").scores["temperature"]
    assert scores["temperature"] != one.quantised(3).scores["temperature"]  # fitted to the rounded model
    assert one.settings["calibration_examples"] == 4
    assert "temperature" not in RobustnessAnalyzer(model, examples).as_trained().scores


@pytest.mark.slow
def test_a_report_holds_the_usual_conditions_and_goes_into_json() -> None:
    model, examples = small("vit")
    one = RobustnessAnalyzer(model, examples, processing_class=Processor())
    seen: list[Any] = []

    def progress(todo: Any) -> Any:
        seen.extend(todo)
        return todo

    report = one.report(progress=progress, severities=(1, 5), shifted={"first three": examples[:3]})
    names = list(report.measurements)
    assert names[:5] == ["as trained", "int8 dynamic", "int8 weights", "int4 weights", "int3 weights"]
    assert [each.condition.level for each in report.of("pruning")] == [0.3, 0.4, 0.5, 0.6, 0.7]
    assert report["first three"].examples == 3
    assert len(list(report.of("corruption"))) == 8
    assert len(seen) == len(names)
    text = json.dumps(report.as_dict(), allow_nan=False)
    assert json.loads(text)["measurements"][1]["condition"]["level"] == 8
    assert report.drop("pruned, 50 %", "nll") == report["pruned, 50 %"].scores["nll"] - report[names[0]].scores["nll"]
    assert report["pruned, 50 %"].changed == pytest.approx(0.5 * report["int4 weights"].changed, rel=0.01)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda one: one.quantised(1), ValueError, r"quantised\(bits=...\)` must be a whole number from 2 to 8, got 1"),
        (lambda one: one.quantised(4, dynamic=True), ValueError, "leave `bits` and `group` out"),
        (lambda one: one.quantised(4, group=0), ValueError, r"quantised\(group=...\)` must be"),
        (lambda one: one.pruned(1.0), ValueError, r"pruned\(share=...\)` must be a finite number >= 0 and < 1"),
        (lambda one: one.pruned(0.5, scope="row"), ValueError, r"pruned\(scope=...\)` must be one of global, layer"),
        (lambda one: one.report(bits=(4, 4), shares=(), dynamic=False), ValueError, "asks for 'int4 weights' twice"),
        (lambda one: one.merged([]), ValueError, "needs another checkpoint"),
        (lambda one: one.merged([one.model], alpha=0.5), ValueError, "both `origin` and `alpha`"),
        (lambda one: RobustnessAnalyzer(one.model, []), ValueError, r"`RobustnessAnalyzer\(dataset=...\)` must have"),
        (lambda one: RobustnessAnalyzer(one.model, one.examples.rows, kind="x"), ValueError, r"kind=...\)` must be"),
        (
            lambda one: RobustnessAnalyzer(one.model, one.examples.rows, calibration=one.examples.rows),
            ValueError,
            "must be other examples than `dataset`",
        ),
        (
            lambda one: RobustnessAnalyzer(one.model, one.examples.rows, kind="regression").as_trained(),
            ValueError,
            r"kind='regression'\)` needs one number an example, got logits \(9, 3\)",
        ),
        (
            lambda one: RobustnessAnalyzer(one.model, [{"pixel_values": torch.zeros(1, 4, 4)}]).as_trained(),
            ValueError,
            "needs labels, and its batches hold pixel_values only",
        ),
        (
            lambda one: RobustnessAnalyzer(T5ForConditionalGeneration(T5Config(
                vocab_size=9, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2)), one.examples.rows),
            NotImplementedError,
            "and T5ForConditionalGeneration is none of them",
        ),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line(call: Any, error: type[Exception], message: str) -> None:
    model, examples = small("vit")
    with pytest.raises(error, match=message) as caught:
        call(RobustnessAnalyzer(model, examples))
    assert "\n" not in str(caught.value)


def test_a_package_that_is_not_there_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if "site-packages" not in place])
    line = r'^`hf_sam.robustness` needs torchmetrics for this: pip install "hf-sam\[robustness\]"\.$'
    with pytest.raises(ImportError, match=line):
        needed("torchmetrics.functional.classification")


@pytest.mark.slow
def test_importing_it_imports_none_of_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys, hf_sam.robustness; print([n for n in ('torchmetrics', 'matplotlib', 'PIL') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torchmetrics" not in done.stdout
    assert "matplotlib" not in done.stdout
