# SPDX-License-Identifier: Apache-2.0
"""Is a card one that the Hub takes, and does it say what the model was trained on?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_sam import SAMTrainer
from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.hub_card import _understood, completed
from hf_sam.cli.tasks.base import Split
from tests.scripts.hub_cards import card_errors

CARD = """---
library_name: transformers
tags:
- generated_from_trainer
model-index:
- name: mine
  results: []
---

# mine

## Training and evaluation data

More information needed

## Training procedure
"""
RESULT = "model-index:\n- name: a\n  results:\n  - task: {type: x}\n    dataset: {type: y, name: z"
LOCAL: dict[str, Any] = {"tasks": "text-classification", "dataset": "local texts"}
GLUE = {"tasks": "text-classification", "dataset_tags": "nyu-mll/glue", "dataset_args": "mnli", "dataset": "GLUE MNLI"}


def task(names: list[str], *, card: dict[str, Any] = LOCAL, sets: tuple[str, ...] = ("",), kind: Any = None) -> Any:
    config = SimpleNamespace(id2label=dict(enumerate(names)), problem_type=kind)
    return SimpleNamespace(
        card=card, pipeline="text-classification", model=SimpleNamespace(config=config), flipped_labels=0,
        train=[0] * 1200, evaluation={name: Split([0] * 300) for name in sets}, test={},
    )  # fmt: skip


def data_of(text: str) -> dict[str, Any]:
    assert card_errors(text) == []
    return yaml.safe_load(text.split("---\n")[1])


def test_local_data() -> None:
    args = ScriptArguments(task="text", train_file="/secret/place/tickets.csv")
    results = {"eval_accuracy": 0.9123456789, "eval_macro_f1": 0.8, "eval_loss": 0.3, "eval_runtime": 2.0}
    text = completed(CARD, args, task(["spam", "h|m"]), {**results, "eval_auc": None, "train_loss": 1.0})
    (entry,) = data_of(text)["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "mine"
    assert result["dataset"] == {"name": "local texts (tickets.csv)", "type": "unknown", "split": "validation"}
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [("accuracy", 0.912346), ("f1", 0.8)]
    assert "datasets" not in data_of(text)
    assert data_of(text)["pipeline_tag"] == "text-classification"
    assert "/secret" not in text
    assert "- training: 1,200 rows\n- evaluation: 300 rows\n" in text
    assert "| 0 | spam |\n| 1 | h\\|m |\n" in text
    assert "## Training procedure" in text


def test_data_of_the_hub_and_several_evaluation_sets() -> None:
    results = {"eval_matched_accuracy": 0.5, "eval_mismatched_accuracy": 0.6, "eval_matched_loss": 1.0}
    text = completed(
        CARD, ScriptArguments(task="mnli"), task(["a", "b"], card=GLUE, sets=("matched", "mismatched")), results
    )
    found = data_of(text)["model-index"][0]["results"]
    assert [result["dataset"]["split"] for result in found] == ["validation_matched", "validation_mismatched"]
    assert {result["dataset"]["config"] for result in found} == {"mnli"}
    assert {result["dataset"]["type"] for result in found} == {"nyu-mll/glue"}
    assert {metric["type"] for result in found for metric in result["metrics"]} == {"accuracy"}
    assert data_of(text)["datasets"] == ["nyu-mll/glue"]


def test_a_named_data_set() -> None:
    args = ScriptArguments(task="text", dataset_name="me/tickets", dataset_config_name="de")
    card = {"tasks": "text-classification", "dataset": "me/tickets"}
    text = completed(CARD, args, task(["a", "b"], card=card), {"test_accuracy": 1})
    (result,) = data_of(text)["model-index"][0]["results"]
    assert result["dataset"] == {"name": "me/tickets", "type": "me/tickets", "config": "de", "split": "test"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_run_that_diverged_has_no_results(value: float | None) -> None:
    data = data_of(completed(CARD, ScriptArguments(task="text"), task(["a", "b"]), {"eval_accuracy": value}))
    assert "model-index" not in data
    assert "metrics" not in data


def test_many_classes_and_numbers() -> None:
    text = completed(CARD, ScriptArguments(task="text"), task([str(number) for number in range(150)]), {})
    assert "| 99 | 99 |\n\n50 more are in `config.json`." in text
    assert "### Labels" not in completed(CARD, ScriptArguments(), task(["LABEL_0"], kind="regression"), {})


def test_a_model_without_classes_lists_none() -> None:
    language_model = task(["LABEL_0", "LABEL_1"])
    language_model.pipeline = "text-generation"
    text = completed(CARD.replace("More information needed", "Mine."), ScriptArguments(), language_model, {})
    assert "### Labels" not in text
    assert text.rstrip().endswith("- evaluation: 300 rows")


def test_a_trainer_whose_card_knows_less_gets_less() -> None:
    class Other:
        def create_model_card(self, model_name: Any = None, dataset_name: Any = None, tags: Any = None) -> None: ...

    class Mixed(Other):
        def create_model_card(self, *args: Any, **kwargs: Any) -> None: ...

    known = {"tasks": "text-generation", "dataset": "mine", "finetuned_from": "me/llm"}
    assert _understood(Mixed, known) == {"dataset_name": "mine"}
    assert _understood(SAMTrainer, known) == known


def test_what_others_wrote_into_the_card_stays() -> None:
    text = CARD.replace("library_name: transformers", "license: mit\nlibrary_name: peft\nbase_model: me/bert")
    data = ModelCard(completed(text, ScriptArguments(), task(["a", "b"]), {"eval_accuracy": 1.0})).data
    assert (data.license, data.library_name, data.base_model) == ("mit", "peft", "me/bert")
    assert data.tags == ["generated_from_trainer"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("tags: []\n", "tags"),
        ("metrics: accuracy\n", "metrics"),
        ("datasets:\n- my data\n", "no name on the Hub"),
        ("base_model: /here/bert\n", "base_model"),
        ("model-index:\n- results: []\n", "name"),
        ("model-index:\n- name: a\n  results:\n  - metrics: []\n    task: {type: x}\n", "cannot be read"),
        (f"{RESULT}, args: sst2}}\n    metrics: [{{type: accuracy, value: 1}}]\n", "args must be an object"),
        (f"{RESULT}}}\n    metrics: [{{type: accuracy, value: .nan}}]\n", "the value nan"),
        ("tags: [\n", "cannot be read"),
    ],
)  # fmt: skip
def test_the_check_finds_what_the_hub_refuses(wrong: str, words: str) -> None:
    assert any(words in error for error in card_errors(f"---\n{wrong}---\n\n# mine\n"))
