# SPDX-License-Identifier: Apache-2.0
"""Does a run that goes on say where, and are both of its parts timed?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hf_sam.cli.common.clock import TrainingClock, seconds_before, where_it_goes_on
from hf_sam.cli.finetune import main

Run = Callable[..., tuple[int, str]]


def begun(kept: dict[str, Any]) -> tuple[TrainingClock, Any]:
    clock, state = TrainingClock(), SimpleNamespace(stateful_callbacks=kept)
    clock.on_train_begin(None, state, None)
    return clock, state


def trainer_with(*callbacks: Any) -> Any:
    return SimpleNamespace(callback_handler=SimpleNamespace(callbacks=list(callbacks)))


def test_the_seconds_of_the_parts_add_up() -> None:
    first, _ = begun({})
    assert seconds_before(trainer_with(first)) == {}
    kept = {"TrainingClock": {"args": {}, "attributes": {"wall": 100.0, "cpu": 50.0}}}
    second, _ = begun(kept)
    assert seconds_before(trainer_with(second)) == {"train_runtime_before": 100.0, "train_cpu_time_before": 50.0}
    assert 100.0 <= second.state()["attributes"]["wall"] < 101.0


def test_a_checkpoint_without_a_clock_can_be_gone_on_from(tmp_path: Path) -> None:
    _, state = begun({})
    assert state.stateful_callbacks["TrainingClock"]["attributes"]["wall"] == 0  # which saving expects to be there
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 1200}), encoding="utf-8")
    assert where_it_goes_on(tmp_path) == f"at step 1,200, from {tmp_path}"


@pytest.mark.slow
def test_a_resumed_run_says_where_and_times_both_parts(
    run: Run, sst2: list[object], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # no line is broken
    argv = [*sst2, "--num_train_epochs", 2]
    assert run(*argv)[0] == 0
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "out" / "checkpoint-3", again / "checkpoint-3")
    capfd.readouterr()
    assert main([*map(str, argv), "--output_dir", str(again), "--resume_from_checkpoint", "True"]) == 0
    page = " ".join(capfd.readouterr().out.split())
    assert "goes on at step 3, from" in page
    assert "before it was resumed)" in page
    results = json.loads((again / "all_results.json").read_text(encoding="utf-8"))
    kept = json.loads((again / "checkpoint-3" / "trainer_state.json").read_text(encoding="utf-8"))
    wall = kept["stateful_callbacks"]["TrainingClock"]["attributes"]["wall"]
    assert results["train_runtime_before"] == wall > 0
    last = json.loads((again / "checkpoint-6" / "trainer_state.json").read_text(encoding="utf-8"))
    assert last["stateful_callbacks"]["TrainingClock"]["attributes"]["wall"] > wall
    assert "train_runtime_before" not in json.loads((tmp_path / "out" / "all_results.json").read_text("utf-8"))
