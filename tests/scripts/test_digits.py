# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_sam.cli.common.parsing import parse
from hf_sam.cli.tasks import TASKS
from hf_sam.cli.tasks.digits import digits
from scripts import side_by_side

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str]]


def built(*arguments: str) -> Any:
    return TASKS["digits"].build(*parse([*arguments, "--use_cpu"], {"digits": TASKS["digits"].defaults}))


def test_the_split_is_stratified_and_complete() -> None:
    train, test = digits()
    assert (len(train), len(test)) == (1437, 360)
    assert all(34 <= test["label"][:].count(digit) <= 38 for digit in range(10))


@pytest.mark.slow
def test_label_noise_depends_on_the_seed_and_spares_the_evaluation_labels() -> None:
    clean, noisy, again, other = built(), built("--label_noise", "0.4"), built("--label_noise", "0.4"), None
    other = built("--label_noise", "0.4", "--seed", "1")
    assert (
        noisy.flipped_labels == 575 == sum(a != b for a, b in zip(clean.train.labels, noisy.train.labels, strict=True))
    )
    assert noisy.train.labels == again.train.labels
    assert noisy.train.labels != other.train.labels
    assert noisy.evaluation[""].data.labels == clean.evaluation[""].data.labels == digits()[1]["label"][:]


def test_the_recipes_differ_only_in_the_method() -> None:
    recipes = ROOT / "scripts" / "recipes"
    contents = {
        name: yaml.safe_load((recipes / f"digits_noise_{name}.yaml").read_text(encoding="utf-8"))
        for name in ("adamw", "sam", "asam")
    }
    rest = [
        {key: value for key, value in content.items() if key not in ("sam_variant", "rho", "output_dir")}
        for content in contents.values()
    ]
    assert rest[0] == rest[1] == rest[2]


@pytest.mark.slow
def test_a_short_run_reports_everything_and_loads_in_a_process_without_hf_sam(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    argv = [
        "--output_dir",
        folder,
        "--num_train_epochs",
        3,
        "--warmup_steps",
        0,
        "--rho",
        0.05,
        "--logging_steps",
        20,
        "--do_predict",
        "--use_cpu",
    ]
    assert run(*argv, "--disable_tqdm", "True", "--lr_scheduler_type", "constant")[0] == 0
    results = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    assert results["eval_accuracy"] == results["test_accuracy"] > 0.2
    assert results["sharpness"] > 0
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "reload.py"), str(folder)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "360 of 360 predictions are the same" in done.stdout


@pytest.mark.everything
@pytest.mark.slow
def test_the_defaults_reach_94_percent_and_the_summary_says_how_to_load_it(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "finetune.py"), "--use_cpu", "--disable_tqdm", "True"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    results = json.loads((tmp_path / "outputs" / "digits-sam" / "all_results.json").read_text(encoding="utf-8"))
    assert results["eval_accuracy"] > 0.94
    for words in ("eval accuracy", "sharpness", "saved in", "outputs/digits-sam", 'pipeline("image-classification"'):
        assert words in done.stdout


@pytest.mark.slow
def test_a_failing_run_fails_the_comparison(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        side_by_side.main(["--output_dir", str(tmp_path), "--extra", "rho=-1"])
    assert ended.value.code == 2
    assert "ended with status 2" in capfd.readouterr().err


@pytest.mark.everything  # tests/distributed/test_launching.py launches it by `accelerate launch` too
@pytest.mark.slow
def test_accelerate_launch_runs_the_script_from_any_folder(tmp_path: Path) -> None:
    script = str(ROOT / "scripts" / "finetune.py")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", script]
    argv = ["--num_train_epochs", "1", "--disable_tqdm", "True"]
    done = subprocess.run([*launch, *argv], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs" / "digits-sam" / "model.safetensors").is_file()
