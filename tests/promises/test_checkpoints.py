# SPDX-License-Identifier: Apache-2.0
"""Promise 11: checkpoints are ordinary checkpoints, and their card says how they were made."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import TrainingArguments

from hf_sam import SAMConfig, SAMTrainer, SAMTrainingArguments
from tests.promises.runs import trainer_for

ELSEWHERE = """
import hashlib, json, sys
class Refuse:
    def find_spec(self, name, *rest):
        if name.split(".")[0] == "hf_sam":
            raise ModuleNotFoundError("hf_sam is not installed here")
sys.meta_path.insert(0, Refuse())
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForImageClassification
torch.set_num_threads(1)
loaders = {"bert": AutoModelForSequenceClassification, "resnet": AutoModelForImageClassification}
for family, (inputs, folders) in json.load(sys.stdin).items():
    for folder in folders:
        model = loaders[family].from_pretrained(folder).eval()
        with torch.no_grad():
            logits = model(**{k: torch.tensor(v) for k, v in inputs.items()}).logits.tolist()
        weights = {name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in model.state_dict().items()}
        print(json.dumps({"family": family, "logits": logits, "weights": weights}))
assert "hf_sam" not in sys.modules
"""


@pytest.mark.slow
def test_a_process_without_hf_sam_loads_the_checkpoints_and_predicts_the_same(tmp_path: Path) -> None:
    weights, logits, asked = {}, {}, {}
    for family in ("bert", "resnet"):
        folder = tmp_path / family
        trainer = trainer_for(family, folder, sam=SAMConfig(rho=0.2), max_steps=3, save_strategy="steps", save_steps=3)
        trainer.train()
        trainer.save_model(str(folder / "final"))
        inputs = {k: v.unsqueeze(0) for k, v in trainer.train_dataset[0].items() if k != "labels"}
        with torch.no_grad():
            logits[family] = trainer.model.eval()(**inputs).logits
        state = trainer.model.state_dict()
        weights[family] = {k: hashlib.sha256(t.numpy().tobytes()).hexdigest() for k, t in state.items()}
        folders = [str(folder / "checkpoint-3"), str(folder / "final")]
        asked[family] = ({k: v.tolist() for k, v in inputs.items()}, folders)
    answers = answers_elsewhere(asked, tmp_path)
    assert [there["family"] for there in answers] == ["bert", "bert", "resnet", "resnet"]
    for there in answers:
        assert there["weights"] == weights[there["family"]]
        # Not to the bit: a file's tensors lie elsewhere in memory, and matrix products depend on how they are aligned.
        torch.testing.assert_close(torch.tensor(there["logits"]), logits[there["family"]])


def answers_elsewhere(asked: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Load the checkpoints of every family in one process that has no hf_sam."""
    answer = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return [json.loads(line) for line in answer.stdout.splitlines()]


def card_of(tmp_path: Path, sam: SAMConfig, **kwargs: Any) -> ModelCard:
    trainer = trainer_for("bert", tmp_path, sam=sam, max_steps=1)
    trainer.train()
    trainer.create_model_card(**kwargs)
    return ModelCard.load(tmp_path / "README.md")


def test_the_model_card_has_the_settings_the_citation_and_the_tag(tmp_path: Path) -> None:
    sam = SAMConfig(rho=0.5, sam_variant="asam", sam_variant_kwargs={"eta": 0.02})
    card = card_of(tmp_path, sam, model_name="fine", tags="text-classification")
    assert {"sharpness-aware-minimization", "text-classification"} <= set(card.data.tags)
    assert "sam" not in card.data.tags
    text = card.text
    assert text.index("### Sharpness-aware minimization") < text.index("### Training hyperparameters")
    assert "rho: 0.5" in text
    assert '{"eta": 0.02}' in text
    assert "kwon2021asam" in text


def test_writing_the_card_twice_says_it_once(tmp_path: Path) -> None:
    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.05), max_steps=1)
    trainer.train()
    trainer.create_model_card()
    trainer.create_model_card(tags=["extra"])
    text = (tmp_path / "README.md").read_text()
    assert text.count("### Sharpness-aware minimization") == 1
    assert text.count("- sharpness-aware-minimization") == 1


def test_without_sam_the_card_does_not_speak_of_it(tmp_path: Path) -> None:
    card = card_of(tmp_path, SAMConfig(sam_variant="none"))
    assert "harpness" not in card.content


def test_training_arguments_saved_beside_the_model_remember_the_settings(tmp_path: Path) -> None:
    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.3), max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    args = torch.load(tmp_path / "checkpoint-1" / "training_args.bin", weights_only=False)
    assert args.rho == 0.3
    assert args.learning_rate == trainer.args.learning_rate


@pytest.mark.parametrize("kind", [TrainingArguments, SAMTrainingArguments])
def test_training_arguments_saved_beside_the_model_load_where_the_package_is_not_installed(
    kind: type, tmp_path: Path
) -> None:
    settings = {"sam_config": SAMConfig(rho=0.3)} if kind is TrainingArguments else {}
    more = {} if settings else {"rho": 0.3}
    trainer = SAMTrainer(torch.nn.Linear(1, 1), kind(str(tmp_path), use_cpu=True, report_to="none", **more), **settings)
    trainer.save_model()
    assert trainer.sam_config.rho == 0.3  # still
    assert b"hf_sam" not in (tmp_path / "training_args.bin").read_bytes()
    saved = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert (type(saved), saved.rho) == (TrainingArguments, 0.3)
