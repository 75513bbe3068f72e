# SPDX-License-Identifier: Apache-2.0
"""Is the loss that is measured that of the Trainer, for models and data of every kind?"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_sam.sharpness import SharpnessAnalyzer
from tests.looped import looped
from tests.sharpness.models import build, hessian


def largest(model: nn.Module, examples: Any, **settings: Any) -> float:
    return SharpnessAnalyzer(model, examples, dtype="float64", **settings).top_eigenvalues(tol=1e-6).values[0]


def truth(model: nn.Module, examples: Any, names: list[str] | None = None) -> float:
    return pytest.approx(np.linalg.eigvalsh(hessian(model, examples, names))[-1], rel=1e-8)


@pytest.mark.slow
def test_frozen_parameters_are_left_out() -> None:
    model, examples = build("bert")
    model.bert.embeddings.requires_grad_(False)
    assert largest(model, examples) == truth(model, examples)


@pytest.mark.slow
def test_an_unused_parameter_has_no_curvature() -> None:
    model, examples = build("bert")
    expected = truth(model, examples)
    model.unused = nn.Parameter(torch.ones(5, 3, dtype=torch.float64))
    assert largest(model, examples) == expected


@pytest.mark.slow
def test_lora() -> None:
    from peft import LoraConfig, get_peft_model

    model, examples = build("bert")
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])).double()
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_()
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    expected = truth(adapted, examples, names)
    assert largest(adapted, examples, batch_size=2) == expected
    adapters = [name for name in names if "lora" in name]
    assert largest(adapted, examples, parameters="adapters") == truth(adapted, examples, adapters)


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradient_checkpointing_that_is_switched_on_makes_no_difference(reentrant: bool) -> None:
    model, examples = build("bert")
    expected = truth(model, examples)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    assert largest(model, examples) == expected


def test_padding_does_not_count_whatever_the_collator_pads_to() -> None:
    model, examples = build("gpt2")

    def longer(features: list[Any]) -> dict[str, torch.Tensor]:
        batch = {key: torch.stack([f[key] for f in features]) for key in features[0]}
        empty = torch.zeros(len(features), 3, dtype=torch.long)
        fill = {"input_ids": empty, "attention_mask": empty, "labels": empty - 100}
        return {key: torch.cat([value, fill[key]], dim=1) for key, value in batch.items()}

    assert largest(model, examples, data_collator=longer) == pytest.approx(largest(model, examples), rel=1e-10)


def test_tied_weights_are_one_parameter() -> None:
    model, examples = build("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    one = SharpnessAnalyzer(model, examples, dtype="float64")
    assert one.loss_function.size == sum(p.numel() for p in model.parameters())
    assert one.sam_sharpness().value > 0


def test_language_models_leave_out_the_first_token_and_the_loss_is_that_of_one_batch() -> None:
    model, examples = build("gpt2")
    for i, example in enumerate(examples):  # batches of very different numbers of labels
        example["labels"] = example["labels"].masked_fill(torch.arange(6) > i % 6, -100)
    batch = {key: torch.stack([e[key] for e in examples]) for key in examples[0]}
    with torch.no_grad():
        expected = model.eval()(**batch).loss
    for size in (1, 2, 4):  # a batch of one may have no label at all
        assert SharpnessAnalyzer(model, examples, batch_size=size).loss() == pytest.approx(float(expected), rel=1e-6)


def test_examples_whose_labels_are_all_left_out_are_refused() -> None:
    model, examples = build("gpt2")
    for example in examples:
        example["labels"] = torch.full((6,), -100)
    with pytest.raises(ValueError, match="all are -100"):
        SharpnessAnalyzer(model, examples).loss()


def test_regression_and_several_labels_count_rows() -> None:
    for settings, label in (
        ({"num_labels": 1, "problem_type": "regression"}, lambda i: float(i)),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, lambda i: torch.rand(3).double()),
    ):
        model, examples = build("bert", **settings)
        examples = [{**e, "labels": label(i)} for i, e in enumerate(examples)]
        losses = [SharpnessAnalyzer(model, examples, dtype="float64", batch_size=b).loss() for b in (9, 4, 1)]
        assert losses == pytest.approx([losses[0]] * 3, rel=1e-12)


def test_a_loss_of_ones_own() -> None:
    model, examples = build("bert")

    def smoothed(model: nn.Module, batch: Any) -> tuple[torch.Tensor, float]:
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        loss = nn.functional.cross_entropy(logits, batch["labels"], label_smoothing=0.9)
        return loss, len(logits)

    plain = SharpnessAnalyzer(model, examples).loss()
    found = [SharpnessAnalyzer(model, examples, loss=smoothed, batch_size=b).loss() for b in (2, 9)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] != pytest.approx(plain, rel=1e-4)


def test_columns_the_model_does_not_know_are_dropped_and_a_data_set_of_datasets_works() -> None:
    datasets = pytest.importorskip("datasets")
    model, examples = build("bert")
    rows = [{**{k: torch.as_tensor(v).tolist() for k, v in e.items()}, "idx": i, "text": "x"} for i, e in
            enumerate(examples)]  # fmt: skip
    for row in rows:
        row["label"] = row.pop("labels")
    expected = SharpnessAnalyzer(model, examples).loss()
    assert SharpnessAnalyzer(model, datasets.Dataset.from_list(rows)).loss() == pytest.approx(expected, rel=1e-6)
    assert SharpnessAnalyzer(model, iter(rows)).loss() == pytest.approx(expected, rel=1e-6)


def test_weights_in_16_bits_are_measured_in_32() -> None:
    model, examples = build("bert")
    half = model.to(torch.bfloat16)
    expected = SharpnessAnalyzer(half, examples).top_eigenvalues().values[0]
    assert half.classifier.weight.dtype == torch.bfloat16
    assert SharpnessAnalyzer(half.float(), examples).top_eigenvalues().values[0] == pytest.approx(expected, rel=1e-5)
    with pytest.warns(UserWarning, match="16 bits are wrong"):
        SharpnessAnalyzer(half.to(torch.bfloat16), examples, dtype="as loaded")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, r"SharpnessAnalyzer\(batch_size=...\)` must be a whole number >= 1, got 0"),
        ({"max_examples": 1.5}, r"max_examples=...\)` must be a whole number"),
        ({"dtype": "bf16"}, r"dtype=...\)` must be one of float32, float64, as loaded, got 'bf16'"),
        ({"parameters": "nothing here"}, r"SharpnessAnalyzer\(parameters=...\)` must choose"),
        ({"dataset": []}, "at least one example"),
        ({"dataset": [{"input_ids": torch.tensor([1, 2])}]}, "returned no loss"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused(settings: dict[str, Any], message: str) -> None:
    model, examples = build("bert")
    with pytest.raises(ValueError, match=message):
        SharpnessAnalyzer(model, **{"dataset": examples, **settings}).loss()


@looped
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda one: one.top_eigenvalues(0), "whole number from 1 to"),
        (lambda one: one.top_eigenvalues(1, "BE"), "which=...\\)` must be one of LA, LM, SA, got 'BE'"),
        (lambda one: one.top_eigenvalues(tol=-1), "tol=...\\)` must be a finite number >= 0"),
        (lambda one: one.trace(5), "products=...\\)` must be a whole number >= 6"),
        (lambda one: one.density(0), "steps=...\\)` must be a whole number >= 1"),
        (lambda one: one.sam_sharpness(-1), "rho=...\\)` must be a finite number >= 0, got -1"),
        (lambda one: one.sam_sharpness(m=0), "m=...\\)` must be a whole number >= 1"),
        (lambda one: one.worst_case(steps=0), "steps=...\\)` must be a whole number >= 1"),
        (lambda one: one.average_case(n=0), "n=...\\)` must be a whole number >= 1"),
        (lambda one: one.per_module(["encodr.*"]), "'encodr.\\*' matches no parameter"),
    ],
)
def test_bad_settings_of_a_measurement_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(SharpnessAnalyzer(*build("bert")))


def test_weights_that_are_not_in_memory_are_refused() -> None:
    model, examples = build("bert")
    model.classifier.to("meta")
    with pytest.raises(NotImplementedError, match=r"in memory, and classifier\.weight is not there"):
        SharpnessAnalyzer(model, examples)


@pytest.mark.slow
def test_what_does_not_converge_says_so() -> None:
    with pytest.raises(RuntimeError, match="eigenvalues 'SA' did not converge to tol=1e-15 in 1 restarts"):
        SharpnessAnalyzer(*build("bert")).top_eigenvalues(3, "SA", tol=1e-15, max_restarts=1)


def test_examples_that_make_no_batch_are_refused_with_the_way_out() -> None:
    model, _ = build("bert")
    ragged = [{"input_ids": list(range(3, 3 + n)), "labels": 0} for n in (2, 3)]
    with pytest.raises(TypeError, match=r"data_collator=...\)` made no batch of 2 examples"):
        SharpnessAnalyzer(model, ragged).loss()


def test_at_most_so_many_examples_the_same_ones_for_a_seed() -> None:
    model, examples = build("bert")
    found = [SharpnessAnalyzer(model, examples, max_examples=4, seed=seed) for seed in (0, 0, 1)]
    assert [len(one.examples.rows) for one in found] == [4, 4, 4]
    assert found[0].loss() == found[1].loss() != found[2].loss()
    assert found[0].settings["examples"] == 4


@pytest.mark.slow
def test_a_report_is_json() -> None:
    report = SharpnessAnalyzer(*build("bert")).report(k=2, products=6, steps=2)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["sam_sharpness"]["standard_error"] is None  # of one value
    assert report["lambda_max"] == report["top_eigenvalues"]["values"][0]
    assert report["lambda_max / lambda_2"] >= 1
    assert report["top_eigenvalues"]["products"] > 0
    assert report["settings"]["seed"] == 0
