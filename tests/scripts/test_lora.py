# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hf_sam.cli import measure

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def trained(run: Run, sst2: list[Any], tmp_path: Path) -> Path:
    assert run(*sst2, "--lora_r", 2, "--learning_rate", "0.05", "--num_train_epochs", 2)[0] == 0
    return tmp_path / "out"


@pytest.mark.slow
def test_adapters_are_saved_small_and_load_with_peft(trained: Path) -> None:
    assert (trained / "adapter_model.safetensors").is_file()
    assert not (trained / "model.safetensors").exists()
    AutoPeftModelForSequenceClassification.from_pretrained(trained, num_labels=2)


@pytest.mark.slow
def test_the_merged_model_is_an_ordinary_one_with_the_same_answers(trained: Path, bert: Path) -> None:
    tokens = AutoTokenizer.from_pretrained(bert)(["the film very good", "bad"], padding=True, return_tensors="pt")
    adapted = AutoPeftModelForSequenceClassification.from_pretrained(trained, num_labels=2).eval()
    merged = AutoModelForSequenceClassification.from_pretrained(trained / "merged").eval()
    base = AutoModelForSequenceClassification.from_pretrained(bert).eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(**tokens).logits, adapted(**tokens).logits, atol=1e-5, rtol=0)
        assert not torch.allclose(base(**tokens).logits, adapted(**tokens).logits, atol=1e-3)
    assert pipeline("text-classification", model=str(trained / "merged"), device="cpu")("good")[0]["label"]


@pytest.mark.slow
def test_the_body_stays_frozen_and_the_head_trains(trained: Path, bert: Path) -> None:
    before = AutoModelForSequenceClassification.from_pretrained(bert).state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(trained / "merged").state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert "classifier.weight" in changed
    assert "bert.encoder.layer.0.attention.self.query.weight" in changed
    assert not [key for key in changed if "embeddings" in key or "LayerNorm" in key]


@pytest.mark.slow
def test_adapters_are_measured_as_the_merged_model(
    trained: Path, reviews: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = ["--task", "sst2", "--validation_file", str(reviews), "--use_cpu", "--disable_tqdm", "True"]
    folders, found = [f"apart={trained}", f"merged={trained / 'merged'}"], tmp_path / "found"
    assert measure.main([*folders, *data, "--robustness", "--no_flatness", "--report", str(found)]) == 0
    report = json.loads((found / "report.json").read_text(encoding="utf-8"))["robustness"]["reports"]
    apart, merged = (
        [each["scores"]["nll"] for each in report[name][0]["measurements"]] for name in ("apart", "merged")
    )
    assert apart == pytest.approx(merged, rel=1e-4)
    (trained / "adapter_model.safetensors").write_bytes(b"")
    assert measure.main([folders[0], *data, "--robustness", "--no_flatness"]) == 2
    assert "adapters in" in capfd.readouterr().err


@pytest.mark.slow
def test_resume_is_exact(run: Run, sst2: list[Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    argv = [*sst2, "--lora_r", 2, "--num_train_epochs", 2]
    assert run(*argv)[0] == 0
    whole = load_file(tmp_path / "out" / "adapter_model.safetensors")
    checkpoint = tmp_path / "out" / "checkpoint-3"
    assert run(*argv, "--output_dir", tmp_path / "again", "--resume_from_checkpoint", checkpoint)[0] == 0
    resumed = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
