# SPDX-License-Identifier: Apache-2.0
"""scripts/finetune.py on two real processes: is it one run, with one result and one voice?"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hf_sam.cli.finetune import main
from tests.distributed.launching import (
    DIGITS,
    SCRIPT,
    finish,
    found,
    results,
    reviews,
    runs,
    same_weights,
    start,
    torchrun,
)
from tests.warm import ROOT, environment

pytestmark = pytest.mark.distributed


def arguments(folder: Path) -> dict[str, list[str]]:
    """Return the runs of one launch, each of which may rely on those before it."""
    text = reviews(folder)
    apart = [*DIGITS, "--output_dir", str(folder / "apart{rank}"), "--resume_from_checkpoint", "True"]
    alone = [str(folder / "alone{rank}.csv") if a.endswith("reviews.csv") else a for a in text]
    shutil.copy(folder / "reviews.csv", folder / "alone0.csv")
    trained, checkpoint = str(folder / "trained"), str(folder / "trained" / "checkpoint-2")
    evaluation = ["--do_train", "False", "--model_name_or_path", trained, "--output_dir", str(folder / "evaluated")]
    return {
        "trained": [*DIGITS, "--output_dir", trained, "--do_predict"],
        "refused": [*DIGITS, "--output_dir", trained],
        "resumed": [*DIGITS, "--output_dir", str(folder / "resumed"), "--resume_from_checkpoint", checkpoint],
        "replaced": [*DIGITS, "--output_dir", str(folder / "resumed"), "--overwrite_output_dir"],
        "evaluated": [*DIGITS, *evaluation],
        "text": [*text, "--output_dir", str(folder / "text")],
        "one sees the data": [*alone, "--output_dir", str(folder / "alone")],
        "one trains": [*DIGITS, "--output_dir", str(folder / "apart0")],
        "one sees the checkpoint": apart,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    # A cache of their own: there is nothing in it that an earlier run prepared.
    finish(start(torchrun(*runs(folder, arguments(folder))), HF_DATASETS_CACHE=str(folder / "cache")))
    return folder


@pytest.mark.parametrize("name", ["trained", "resumed", "replaced", "evaluated", "text"])
def test_both_processes_are_one_run(name: str, folder: Path) -> None:
    first, second = found(folder, name)
    assert (first["status"], first["world"], first["engine"]) == (0, 2, "MULTI_CPU")
    assert same_weights(first, second)
    assert results(folder / ("resumed" if name == "replaced" else name))["processes"] == 2


@pytest.mark.parametrize("name", ["trained", "resumed", "replaced", "evaluated", "text"])
def test_only_the_first_process_prints(name: str, folder: Path) -> None:
    first, second = found(folder, name)
    assert first["out"].count("Load it, without hf_sam") == (name != "evaluated")  # which trains no model
    # DeepSpeed, where it is installed, warns on every process when it is imported.
    assert [line for line in second["out"].splitlines() if "[WARNING]" not in line] == []


def test_resuming_and_replacing_end_with_the_same_bits(folder: Path) -> None:
    whole, resumed, replaced = (found(folder, name)[0] for name in ("trained", "resumed", "replaced"))
    assert whole["steps"] == resumed["steps"] == 4
    assert same_weights(whole, resumed)
    assert same_weights(whole, replaced)
    assert not (folder / "replaced").exists()


def test_metrics_and_predictions_are_those_of_one_process(folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    argv = [*DIGITS, "--do_train", "False", "--do_predict", "--model_name_or_path", folder / "trained"]
    assert main([str(a) for a in (*argv, "--output_dir", alone)]) == 0
    expected = results(alone)
    assert expected["processes"] == 1
    for name in ("trained", "evaluated"):
        both = results(folder / name)
        assert both["eval_samples"] == expected["eval_samples"] == 51
        assert both["eval_accuracy"] == expected["eval_accuracy"]
        # The Trainer's own loss counts the examples twice with which it fills up the last batch.
        assert both["eval_loss"] == pytest.approx(expected["eval_loss"], rel=0.02)
    assert (folder / "trained" / "predictions.tsv").read_text() == (alone / "predictions.tsv").read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("refused", "already holds a model"),
        ("one sees the data", "alone1.csv does not exist"),
        ("one sees the checkpoint", "disagree on the checkpoint"),
    ],
)
def test_wrong_input_on_any_process_ends_both_with_one_line(name: str, words: str, folder: Path) -> None:
    first, second = found(folder, name)
    assert first["status"] == second["status"] == 2
    (line,) = [line for line in first["err"].splitlines() if line.startswith("error: ")]
    assert words in line
    assert "error: " not in second["err"]


def test_a_refused_launch_ends_at_once(folder: Path) -> None:
    command: list[Any] = torchrun(SCRIPT, *DIGITS, "--output_dir", folder / "trained")
    before = results(folder / "trained")
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("error: --output_dir") == 1
    assert 'finetune.py", line' not in done.stderr  # no traceback of ours
    assert results(folder / "trained") == before
