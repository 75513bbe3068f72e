# SPDX-License-Identifier: Apache-2.0
"""Killed while it writes a checkpoint, the script goes on and ends with the same bits."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import warm


@pytest.mark.slow
@pytest.mark.parametrize("step", [6, pytest.param(9, marks=pytest.mark.everything)])
def test_kill_9_while_saving(step: int, run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    argv: list[Any] = ["--max_steps", 12, "--save_steps", 3, "--eval_steps", 100, "--save_total_limit", 4, "--use_cpu"]
    argv += ["--disable_tqdm", "True", "--rho", 0.05]
    assert run(*argv, "--output_dir", tmp_path / "whole")[0] == 0
    killed = tmp_path / "killed"
    script = str(warm.ROOT / "scripts" / "finetune.py")
    process = warm.start(script, *argv, "--output_dir", killed, log=tmp_path / "killed.log")
    while not (killed / f"checkpoint-{step}").exists():
        assert process.exitcode is None, "it ended before it could be killed"
        time.sleep(0.001)
    process.kill()
    process.join()
    assert not (killed / "model.safetensors").exists()
    assert run(*argv, "--output_dir", killed, "--resume_from_checkpoint", "True")[0] == 0
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", killed))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
