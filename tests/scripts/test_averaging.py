# SPDX-License-Identifier: Apache-2.0
"""--average_weights: is what is saved the mean of the steps that it says, and is refused what cannot be kept?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_sam.cli.common.averaging import check_averaging
from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.parsing import parse

Run = Callable[..., tuple[int, str]]


def test_the_mean_of_the_steps_of_the_last_half_is_kept(run: Run, sst2: list[Any], tmp_path: Path) -> None:
    argv = [*sst2, "--num_train_epochs", 2, "--save_strategy", "steps", "--save_steps", 1]
    assert run(*argv, "--save_total_limit", 9, "--average_weights", 0.5)[0] == 0
    folder = tmp_path / "out"
    steps = [load_file(folder / f"checkpoint-{step}" / "model.safetensors") for step in (4, 5, 6)]
    kept = load_file(folder / "model.safetensors")
    assert not all(torch.equal(kept[name], steps[-1][name]) for name in kept), "not the last step's"
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, sum(step[name] for step in steps) / 3)
    assert json.loads((folder / "all_results.json").read_text(encoding="utf-8"))["average_weights"] == 0.5


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--average_weights", "1"], ["--average_weights must be in [0, 1), got 1.0"]),
        (["--average_weights", "0.5", "--early_stopping_patience", "2"], ["--early_stopping_patience", "give one"]),
    ],
)
def test_what_cannot_be_averaged_is_refused(sst2: list[Any], refuses: Any, extra: list[str], words: list[str]) -> None:
    refuses([*sst2, *extra], *words)


def test_split_weights_are_refused(sst2: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    args, training = parse([*map(str, sst2), "--average_weights", "0.5"], {"sst2": {}})
    check_averaging(args, training)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="--average_weights needs whole weights"):
        check_averaging(args, training)
