# SPDX-License-Identifier: Apache-2.0
"""Does a file of instructions become a trained language model, and is what is said of it true?"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, pipeline

from hf_sam.cli.common.before_training import before_lines
from hf_sam.cli.common.parsing import parse
from hf_sam.cli.finetune import make_trainer
from hf_sam.cli.tasks import TASKS, sft
from tests.scripts.tiny_models import save_language_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl"),
]
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def argv(llama: Path, tmp_path: Path) -> list[Any]:
    arguments = ["--task", "sft", "--model_name_or_path", llama, "--output_dir", tmp_path / "out", "--max_length", 96]
    arguments += ["--per_device_train_batch_size", 4, "--num_train_epochs", 1, "--learning_rate", 0.01]
    return [*arguments, "--use_cpu", "--disable_tqdm", "True"]


@pytest.fixture
def instructions(tmp_path: Path) -> Path:
    """Instructions as Alpaca writes them."""
    rows = [
        {"instruction": f"Say {n}", "input": "" if n % 2 else "loudly", "output": "hello " * (1 + n % 3)}
        for n in range(20)
    ]
    (tmp_path / "alpaca.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path / "alpaca.jsonl"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [{"prompt": f"What is {n}?", "completion": " Paris" * (1 + n % 4)} for n in range(20)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path / "prompts.jsonl"


def built(*arguments: Any) -> Any:
    args, training = parse([str(argument) for argument in arguments], {"sft": TASKS["sft"].defaults})
    return args, training, TASKS["sft"].build(args, training)


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "all_results.json").read_text(encoding="utf-8"))


def test_instructions_are_learnt_with_adapters_above_a_size(
    run: Run, argv: list[Any], instructions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft, "LORA_ABOVE", 1000)
    assert run(*argv, "--train_file", instructions, "--num_train_epochs", 3, "--rho", 0.05)[0] == 0
    found = results(tmp_path / "out")
    assert found["eval_perplexity"] == pytest.approx(math.exp(found["eval_loss"]))
    assert (found["train_samples"], found["eval_samples"], found["sam/run_perturbed"]) == (17, 3, 1)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    merged = tmp_path / "out" / "merged"
    assert AutoModelForCausalLM.from_pretrained(merged).config.vocab_size
    generate = pipeline("text-generation", model=str(merged), device="cpu")
    said = generate([{"role": "user", "content": "Say 3"}], max_new_tokens=3)[0]["generated_text"]
    assert [message["role"] for message in said] == ["user", "assistant"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "is fine-tuned from a local checkpoint" in card
    assert f"- Loss: {found['eval_loss']:.4f}\n- Perplexity: {found['eval_perplexity']:.4f}" in card
    assert "- steps with a perturbation: 15 of 15" in card
    assert "\n- trl\n" in card


def test_without_a_radius_it_is_trls_own_training(run: Run, argv: list[Any], prompts: Path, tmp_path: Path) -> None:
    losses = []
    for number, method in enumerate((["--rho", 0], ["--sam_variant", "none"])):
        more = ["--train_file", prompts, "--output_dir", tmp_path / str(number), "--gradient_accumulation_steps", 2]
        assert run(*argv, *more, *method)[0] == 0
        losses.append(results(tmp_path / str(number))["eval_loss"])
    assert losses[0] == losses[1]


def test_the_loss_is_that_of_the_mean_token(argv: list[Any], prompts: Path) -> None:
    args, training, task = built(*argv, "--train_file", prompts, "--per_device_eval_batch_size", 2)
    found = make_trainer(args, training, task).evaluate()
    total, count = 0.0, 0
    for row in task.evaluation[""].data:
        labels = torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logits = task.model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != -100).sum())
    assert found["eval_loss"] == pytest.approx(total / count, rel=1e-5)


def test_packed_rows_do_not_see_each_other(run: Run, argv: list[Any], prompts: Path, tmp_path: Path) -> None:
    args, training, task = built(*argv, "--train_file", prompts, "--packing")
    page = dict(before_lines(args, training, task))
    assert page["train rows"].startswith(f"{len(task.train)} ")
    assert len(task.train) < 17
    assert "packed" in str(task.facts.notes)
    batch = make_trainer(args, training, task).data_collator([task.train[0]])
    first, second = task.train[0]["seq_lengths"][:2]
    with torch.no_grad():
        together = task.model(**{key: value for key, value in batch.items() if key != "labels"}).logits[0]
        alone = task.model(input_ids=batch["input_ids"][:, first : first + second]).logits[0]
    torch.testing.assert_close(together[first : first + second], alone)
    assert run(*argv, "--train_file", prompts, "--packing")[0] == 0
    assert results(tmp_path / "out")["eval_samples"] == 3


def test_a_part_of_the_training_rows_can_be_held_out(run: Run, argv: list[Any], prompts: Path, tmp_path: Path) -> None:
    assert run(*argv, "--train_file", prompts, "--hold_out", 0.2)[0] == 0
    assert results(tmp_path / "out")["eval_samples"] == 3


def test_a_trained_model_is_evaluated_alone(run: Run, argv: list[Any], prompts: Path, tmp_path: Path) -> None:
    assert run(*argv, "--do_train", "False", "--validation_file", prompts)[0] == 0
    assert results(tmp_path / "out")["eval_samples"] == 20


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--do_predict"], ["--do_predict", "--validation_file"]),
        (["--label_column", "x"], ["--label_column", "--task sft"]),
        (["--tag_names", "x"], ["--tag_names is for --task tokens"]),
        (["--metric_for_best_model", "accuracy", "--early_stopping_patience", 1], ["accuracy", "loss or perplexity"]),
        (["--packing", "--ascent_fraction", 0.5], ["--packing", "--ascent_fraction"]),
        (["--chat_template", "nowhere"], ["--chat_template nowhere", "plain"]),
        (["--lora_r", 2, "--lora_target_modules", "lm_head"], ["lm_head"]),
    ],
)
def test_bad_arguments(refuses: Any, argv: list[Any], prompts: Path, extra: list[Any], words: list[str]) -> None:
    refuses([*argv, "--train_file", prompts, *extra], *words)


def test_chats_need_a_template(refuses: Any, argv: list[Any], tmp_path: Path) -> None:
    bare = save_language_model(tmp_path / "bare", None)
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (tmp_path / "chat.jsonl").write_text("\n".join([json.dumps({"messages": talk})] * 8), encoding="utf-8")
    more = [*argv, "--model_name_or_path", bare, "--train_file", tmp_path / "chat.jsonl"]
    refuses(more, "chat.jsonl holds chats", "bare has no chat template", "--chat_template")
    assert "hats" in built(*more, "--chat_template", "plain")[2].facts.problem


def test_without_trl_one_line_names_the_extra(
    refuses: Any, argv: list[Any], prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refuses([*argv, "--train_file", prompts], 'pip install "hf-sam[cli,sft]"')
