# SPDX-License-Identifier: Apache-2.0
"""Are bars shown on every long step, none twice, and none where nobody watches?"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets.utils import are_progress_bars_disabled
from PIL import Image
from transformers.utils import logging

from hf_sam.cli.common.parsing import parse
from hf_sam.cli.common.progress import parts_of_work, progress_bars, track
from hf_sam.cli.tasks import TASKS
from tests.floor import is_older

Run = Callable[..., tuple[int, str]]
DEFAULTS = {name: entry.defaults for name, entry in TASKS.items()}


@pytest.mark.parametrize("watched", [True, False])
def test_bars_are_for_a_terminal_unless_the_user_says_otherwise(watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: watched, write=len, flush=lambda: None))
    assert parse(["--use_cpu"], DEFAULTS)[1].disable_tqdm is not watched
    assert parse(["--use_cpu", "--disable_tqdm", str(watched)], DEFAULTS)[1].disable_tqdm is watched


def test_all_bars_are_switched_together_and_back(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    with progress_bars(False):
        assert (are_progress_bars_disabled(), logging.is_progress_bar_enabled()) == (True, False)
        assert list(track([1, 2], "unseen")) == [1, 2]
        with progress_bars(True):
            assert list(track([1, 2], "seen")) == [1, 2]
        monkeypatch.setenv("LOCAL_RANK", "1")
        with progress_bars(True):
            assert list(track([1, 2], "of another process")) == [1, 2]
    assert (are_progress_bars_disabled(), logging.is_progress_bar_enabled()) == before
    written = capfd.readouterr().err
    assert "seen: 100%" in written
    assert "unseen" not in written
    assert "another" not in written


@pytest.mark.skipif(is_older("rich", "14"), reason="rich 13.9 ends a bar that is off with an empty line")
def test_parts_of_work_are_quiet_when_bars_are(capfd: pytest.CaptureFixture[str]) -> None:
    with parts_of_work(SimpleNamespace(disable_tqdm=True)) as bar:
        bar.update(bar.add_task("measuring", total=1), completed=1)
    assert capfd.readouterr() == ("", "")


def bars(errors: str) -> Counter[str]:
    """Count how often each bar ended, by what stands before it."""
    return Counter(re.findall(r"([^\r\n|]*?): 100%\|", errors))


@pytest.mark.slow
def test_a_run_shows_each_bar_once(run: Run, sst2: list[object]) -> None:
    status, errors = run(*sst2, "--disable_tqdm", "False", "--num_train_epochs", 1)
    assert status == 0
    ended = bars(re.sub(r"\x1b\[[A-Z\d]*", "", errors))
    names = {"Tokenizing train texts", "Tokenizing validation texts", "Loading weights"}
    assert {name: ended[name] for name in names} == dict.fromkeys(names, 1)
    assert re.search(r"3/3 \[", errors)  # the training


@pytest.mark.slow
def test_a_run_that_nobody_watches_shows_none(run: Run, sst2: list[object]) -> None:
    status, errors = run(*sst2[:-2])
    assert status == 0
    assert "%|" not in errors


def test_images_are_looked_at_and_read_with_a_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("a/1", "a/2", "b/1", "b/2", "b/3"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    small = '{"image_size": 8, "patch_size": 4, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}'
    argv: list[Any] = ["--task", "image", "--model_type", "vit", "--config_overrides", small, "--use_cpu", "--do_eval"]
    args, training = parse([*argv, "False", "--train_dir", str(tmp_path / "photos")], DEFAULTS)
    with progress_bars(True):
        TASKS["image"].build(args, training)
    where = f"the images of --train_dir {tmp_path / 'photos'}"
    assert bars(capfd.readouterr().err) == {f"Checking {where}": 1, f"Reading {where}": 1}
