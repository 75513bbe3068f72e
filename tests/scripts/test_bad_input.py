# SPDX-License-Identifier: Apache-2.0
"""Wrong input ends in one clear line and leaves an existing folder alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
Refuses = Callable[..., None]


@pytest.fixture(autouse=True)
def untouched(tmp_path: Path) -> object:
    """Put a finished-looking folder in the way and compare it after the test."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    yield
    if folder.is_dir():
        assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == {"notes.txt": "mine"}


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        ([["good", 2]], ["sentence", "label"], ["row 0", "'label'", "0 to 1", "2"]),
        ([["good", 1], ["bad", -1]], ["sentence", "label"], ["row 1", "-1"]),
        ([["good", 1], ["bad", ""]], ["sentence", "label"], ["row 1", "missing or NaN"]),
        ([["good", 0.5]], ["sentence", "label"], ["row 0", "0.5"]),
        ([["good", "great"]], ["sentence", "label"], ["row 0", "'great'", "negative, positive"]),
        ([["good", 1]], ["text", "label"], ["no column 'sentence'; it has text, label"]),
        ([["good", 1]], ["sentence", "gold"], ["no column 'label'", "sentence, gold", "--label_column"]),
        ([["", 1]], ["sentence", "label"], ["row 0", "'sentence'", "must be text"]),
        ([], ["sentence", "label"], ["is empty"]),
    ],
)
def test_bad_rows(
    refuses: Refuses,
    sst2: list[object],
    write_csv: Callable[..., Path],
    rows: list,
    header: list[str],
    words: list[str],
) -> None:
    path = write_csv("bad.csv", header, rows)
    refuses([*sst2, "--train_file", path], "--train_file", "bad.csv", *words)
    refuses([*sst2, "--validation_file", path], "--validation_file", "bad.csv", *words)


@pytest.mark.parametrize("score", ["", "nan", "5.5", "-1", "high"])
def test_bad_scores(refuses: Refuses, sst2: list[object], write_csv: Callable[..., Path], score: str) -> None:
    path = write_csv("bad.csv", ["sentence1", "sentence2", "label"], [["good", "bad", score]])
    argv = [*sst2, "--task", "stsb", "--train_file", path, "--validation_file", path]
    refuses(argv, "row 0", "a number from 0 to 5")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", None, ["does not exist"]),
        ("x.doc", b"", ["must end in"]),
        ("x.parquet", b"PAR1 cut off", ["cannot be read"]),
        ("x.json", b"{not json", ["cannot be read"]),
        ("x.csv", b"", ["cannot be read"]),
    ],
)
def test_bad_files(
    refuses: Refuses, sst2: list[object], tmp_path: Path, name: str, content: bytes | None, words: list[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refuses([*sst2, "--train_file", tmp_path / name], "--train_file", name, *words)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--model_name_or_path", "no/such-model"], ["no/such-model", "cannot be loaded"]),
        (["--config_overrides", "{hidden"], ["--config_overrides", "JSON", "{hidden"]),
        (["--config_overrides", "[1]"], ["--config_overrides", "JSON object"]),
        (["--config_overrides", '{"hiden_size": 8}'], ["hiden_size", "did you mean 'hidden_size'"]),
        (["--tokenizer_name", "no/such-tokenizer"], ["no/such-tokenizer"]),
        (["--train_dir", "x"], ["--train_dir", "sst2"]),
        (["--dataset_name", "x"], ["--dataset_name", "sst2"]),
        (["--validation_mismatched_file", "x"], ["--validation_mismatched_file", "sst2"]),
        (["--do_predict"], ["--test_file is missing"]),
        (["--task", "mnli"], ["no column 'premise'"]),
        (["--lora_r", "2", "--lora_target_modules", "nowhere"], ["--lora_target_modules", "nowhere"]),
        (["--resume_from_checkpoint", "nowhere"], ["--resume_from_checkpoint", "nowhere", "does not exist"]),
        (["--optim", "lomo"], ["lomo"]),
    ],
)
def test_bad_arguments(refuses: Refuses, sst2: list[object], extra: list[object], words: list[str]) -> None:
    refuses([*sst2, *extra], *words)


def test_scores_cannot_be_flipped(refuses: Refuses, sst2: list[object]) -> None:
    refuses([*sst2, "--task", "stsb", "--label_noise", "0.1"], "--label_noise", "stsb")


def test_names_on_the_hub_without_network(refuses: Refuses, tmp_path: Path, bert: Path) -> None:
    out = ["--output_dir", tmp_path / "out", "--use_cpu"]
    refuses(["--task", "rte", "--model_name_or_path", bert, *out], "nyu-mll/glue", "rte", "cannot be read")
    refuses(["--task", "image", "--dataset_name", "no/images", *out], "--dataset_name no/images", "cannot be read")


@pytest.mark.slow
def test_a_model_of_another_kind(refuses: Refuses, sst2: list[object], tmp_path: Path, bert: Path) -> None:
    refuses(
        ["--model_name_or_path", bert, "--output_dir", tmp_path / "out", "--use_cpu"], "--model_name_or_path", "bert"
    )
    other = tmp_path / "other"
    shutil.copytree(bert, other)
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    refuses([*sst2, "--model_name_or_path", other], "--model_name_or_path", "checkpoint of another model")


def test_a_truncated_model(refuses: Refuses, sst2: list[object], tmp_path: Path, bert: Path) -> None:
    shutil.copytree(bert, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refuses([*sst2, "--model_name_or_path", tmp_path / "cut"], "--model_name_or_path", "cannot be loaded")


def test_an_output_dir_that_is_a_file_or_is_under_one(refuses: Refuses, sst2: list[object], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    refuses([*sst2, "--output_dir", tmp_path / "file"], "--output_dir", "is a file")
    refuses([*sst2, "--output_dir", tmp_path / "file" / "under"], "--output_dir", "is a file")


def test_bad_image_input(refuses: Refuses, tmp_path: Path) -> None:
    argv = ["--task", "image", "--model_type", "vit", "--output_dir", tmp_path / "out", "--use_cpu"]
    argv += ["--config_overrides", '{"image_size": 8, "patch_size": 4, "hidden_size": 8, "num_attention_heads": 2}']
    refuses(argv, "--task image needs images")
    refuses([*argv, "--train_dir", tmp_path / "no"], "--train_dir", "does not exist")
    (tmp_path / "images" / "a").mkdir(parents=True)
    refuses([*argv, "--train_dir", tmp_path / "images"], "--train_dir", "one folder of images per class")
    (tmp_path / "images" / "b").mkdir()
    refuses([*argv, "--train_dir", tmp_path / "images"], "--train_dir", "found no images")
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/3.png", "b/4.png"):
        Image.new("L", (8, 8)).save(tmp_path / "images" / name)
    (tmp_path / "images" / "b" / "2.png").write_bytes(b"no image")
    refuses([*argv, "--train_dir", tmp_path / "images"], "--train_dir", "1 of 6 images", "cannot be read", "b/2.png")


def test_digits_refuses_arguments_that_would_do_nothing(refuses: Refuses, tmp_path: Path) -> None:
    out = ["--output_dir", tmp_path / "out", "--use_cpu"]
    refuses(["--train_file", "x.csv", *out], "--train_file", "--task digits")
    refuses(["--config_overrides", '{"num_channels": 1}', *out], "num_channels must be 3")
    refuses(["--config_overrides", '{"hidden_size": "x"}', *out], "--config_overrides", "'x'")


@pytest.mark.slow
def test_the_command_ends_with_one_line_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "finetune.py"), "--task", "sst3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: --task sst3 is unknown")
    assert done.stderr.count("\n") == 1
