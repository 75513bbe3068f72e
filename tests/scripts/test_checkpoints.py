# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint is good enough to go on from, and what must not be overwritten."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hf_sam.cli.common.checkpoints import checkpoints, find_checkpoint, find_damage

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def trained(run: Run, sst2: list[Any], tmp_path: Path) -> tuple[list[Any], Path]:
    """A run of two epochs (six steps) with a checkpoint after each."""
    argv = [*sst2, "--num_train_epochs", 2]
    assert run(*argv)[0] == 0
    folder = tmp_path / "out"
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-6", "checkpoint-3"]
    return argv, folder


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(bool((a[key] == b[key]).all()) for key in a)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_a_truncated_or_missing_file_is_damage(trained: tuple[list[Any], Path], name: str) -> None:
    checkpoint = trained[1] / "checkpoint-6"
    assert find_damage(checkpoint) is None
    file = checkpoint / name
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert find_damage(checkpoint) == f"{name} is truncated"
    file.unlink()
    assert name == "rng_state.pth" or find_damage(checkpoint)


@pytest.mark.slow
def test_a_truncated_checkpoint_is_passed_over_and_the_result_is_the_same(
    trained: tuple[list[Any], Path], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    argv, folder = trained
    finished = weights(folder)
    (folder / "checkpoint-6" / "trainer_state.json").unlink()  # as after kill -9 while saving
    with caplog.at_level(logging.WARNING):
        status, _ = run(*argv, "--resume_from_checkpoint", "True")
    assert status == 0
    assert "Passing over" in caplog.text
    assert "checkpoint-6" in caplog.text
    assert same(weights(folder), finished)
    assert find_damage(folder / "checkpoint-6") is None


@pytest.mark.slow
@pytest.mark.parametrize("best", [False, True])
def test_a_vit_whose_tensors_are_renamed_in_the_file_comes_back_exactly(best: bool, run: Run, tmp_path: Path) -> None:
    argv: list[Any] = ["--max_steps", 4, "--save_steps", 2, "--eval_steps", 2, "--use_cpu", "--disable_tqdm", "True"]
    argv += ["--rho", 0.05]
    argv += ["--config_overrides", '{"hidden_size": 16, "num_hidden_layers": 1}', "--per_device_train_batch_size", 16]
    argv += ["--output_dir", tmp_path / "out"]
    if best:  # such steps change weights but no prediction, so that the first evaluation, at step 2, stays the best
        argv += ["--early_stopping_patience", 9, "--learning_rate", 1e-7]
    assert run(*argv)[0] == 0
    finished = weights(tmp_path / "out")
    if best:
        assert same(finished, weights(tmp_path / "out" / "checkpoint-2"))
        assert not same(finished, weights(tmp_path / "out" / "checkpoint-4"))
        return
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    assert run(*argv, "--resume_from_checkpoint", "True")[0] == 0
    assert same(weights(tmp_path / "out"), finished)


@pytest.mark.slow
def test_an_incomplete_checkpoint_given_by_name_is_refused(trained: tuple[list[Any], Path], refuses: Any) -> None:
    argv, folder = trained
    (folder / "checkpoint-3" / "optimizer.pt").unlink()
    refuses([*argv, "--resume_from_checkpoint", folder / "checkpoint-3"], "checkpoint-3", "incomplete", "optimizer.pt")


@pytest.mark.slow
def test_a_finished_folder_is_refused_and_replaced_only_on_request(
    trained: tuple[list[Any], Path], run: Run, refuses: Any
) -> None:
    argv, folder = trained
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    refuses(argv, "--output_dir", "already holds a model", "--overwrite_output_dir", "--resume_from_checkpoint")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    status, _ = run(*argv, "--num_train_epochs", 1, "--overwrite_output_dir")
    assert status == 0
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-3"]
    assert (folder / "notes.txt").is_file()


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(
    trained: tuple[list[Any], Path], refuses: Any, bert: Path, tmp_path: Path
) -> None:
    argv, folder = trained
    other = [*argv, "--resume_from_checkpoint", folder / "checkpoint-3", "--output_dir", tmp_path / "new"]
    config = json.loads((bert / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide" / "config.json").write_text(json.dumps(config | {"hidden_size": 32}), encoding="utf-8")
    position = other.index("--model_name_or_path")
    other[position : position + 2] = ["--config_name", tmp_path / "wide", "--tokenizer_name", bert]
    refuses(other, "checkpoint of another model", "hidden_size is 16 there and 32 here")
    refuses([*argv, "--lora_r", 2, "--resume_from_checkpoint", folder / "checkpoint-3"], "--lora_r", "whole model")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_asking_to_resume_where_nothing_is_starts_from_the_beginning(
    run: Run, sst2: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert run(*sst2, "--resume_from_checkpoint", "True")[0] == 0
    assert "starts from the beginning" in caplog.text


@pytest.mark.slow
def test_resuming_a_finished_run_without_checkpoints_is_refused(trained: tuple[list[Any], Path], refuses: Any) -> None:
    argv, folder = trained
    for path in checkpoints(folder):
        shutil.rmtree(path)
    refuses([*argv, "--resume_from_checkpoint", "True"], "finished model but no checkpoint")


def test_resuming_and_overwriting_exclude_each_other(sst2: list[Any], refuses: Any) -> None:
    refuses(
        [*sst2, "--resume_from_checkpoint", "True", "--overwrite_output_dir"], "--resume_from_checkpoint", "give one"
    )


def test_false_is_no_checkpoint(tmp_path: Path) -> None:
    assert find_checkpoint("False", tmp_path) is None
    assert find_checkpoint(None, tmp_path) is None
