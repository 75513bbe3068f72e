# SPDX-License-Identifier: Apache-2.0
"""Does the page before the training say what will be trained on, and is nothing left behind by looking at it?"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hf_sam.cli.common.before_training import before_lines, count_steps, describe_method, show_before
from hf_sam.cli.common.parsing import parse
from hf_sam.cli.finetune import make_trainer
from hf_sam.cli.tasks import TASKS

Run = Callable[..., tuple[int, str]]


def prepared(*arguments: Any) -> tuple[Any, Any, Any]:
    args, training = parse([str(a) for a in arguments], {name: entry.defaults for name, entry in TASKS.items()})
    return args, training, TASKS[args.task].build(args, training)


@pytest.fixture
def argv(bert: Path, write_csv: Any, tmp_path: Path) -> list[Any]:
    rows = [[f"film [b]{row}[/b]" + " good" * (20 * (row == 3)), ["a", "b", "b"][row % 3]] for row in range(12)]
    train = write_csv("train.csv", ["text", "label"], rows)
    dev = write_csv("dev.csv", ["text", "label"], [*rows[:2], ["the plot", "a"]])
    arguments = ["--task", "text", "--model_name_or_path", bert, "--train_file", train, "--validation_file", dev]
    return [*arguments, "--max_length", 24, "--use_cpu", "--disable_tqdm", "True", "--output_dir", tmp_path / "out"]


def test_the_page_says_what_was_understood(argv: list[Any]) -> None:
    args, training, task = prepared(*argv)
    lines = [(name, value) for name, value in before_lines(args, training, task)]
    page = dict(lines)
    assert page["train rows"].startswith("12  --train_file")
    assert page["validation rows"].startswith("3  --validation_file")
    assert page["columns"] == "text from text, label from label"
    assert page["labels"] == "classification: labels are names"
    assert (page["b"], page["a"]) == ("█" * 24 + " 8  (validation 1)", "█" * 12 + " 4  (validation 2)")
    assert "1 (8.3%) are cut at --max_length 24" in page["train lengths"]
    assert [value.split("  ->  ")[1] for name, value in lines if name == "example"] == ["a", "a", "b"]
    assert page["device"] == "cpu, float32"
    assert page["method"].startswith("SAM, rho auto: two passes a step")
    assert "2 validation rows (67%) are in the training data" in page["warning"]


def test_brackets_in_texts_are_printed_as_they_are(argv: list[Any]) -> None:
    written = io.StringIO()
    show_before(*prepared(*argv), console=Console(file=written, width=100))
    assert "film [b]0[/b]" in written.getvalue()


def test_many_classes_are_the_largest_and_the_smallest(argv: list[Any], write_csv: Any) -> None:
    rows = [[f"film {row}", f"class {row % 20}"] for row in range(39)]
    path = write_csv("many.csv", ["text", "label"], rows)
    lines = list(before_lines(*prepared(*argv, "--train_file", path, "--validation_file", path)))
    assert sum(name.startswith("class ") for name, _ in lines) == 12
    assert ("", "... 8 more classes, of 2 to 2 examples ...") in lines


@pytest.mark.slow
def test_a_dry_run_prints_the_page_and_writes_nothing(
    run: Run, argv: list[Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    from hf_sam.cli.finetune import main

    capfd.readouterr()
    assert main([*map(str, argv), "--dry_run"]) == 0
    assert "train rows" in capfd.readouterr().out
    assert set(tmp_path.rglob("*")) == before


def test_a_dry_run_refuses_what_the_run_would_refuse(refuses: Any, argv: list[Any]) -> None:
    refuses([*argv, "--dry_run", "--optim", "lomo"], "lomo")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [[], ["--per_device_train_batch_size", 5], ["--gradient_accumulation_steps", 2, "--num_train_epochs", 1.5],
     ["--max_steps", 3], ["--dataloader_drop_last", "True", "--per_device_train_batch_size", 5]],
    ids=str,
)  # fmt: skip
def test_the_steps_are_those_that_are_taken(argv: list[Any], more: list[Any]) -> None:
    args, training, task = prepared(*argv, *more, "--save_strategy", "no", "--eval_strategy", "no")
    trainer = make_trainer(args, training, task)
    trainer.train()
    assert trainer.state.global_step == count_steps(training, len(task.train))[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--sam_variant", "none"], "plain training, one pass a step"),
        (["--sam_variant", "momentum"], "one pass a step, about the time of plain training"),
        (["--ascent_fraction", "0.25"], "two passes a step, about 1.25 times"),
        (["--sam_every", "2"], "two passes a step where it perturbs"),
    ],
)
def test_the_method_and_its_cost(more: list[str], words: str) -> None:
    assert words in describe_method(parse([*more, "--use_cpu"], {"digits": {}})[1])
