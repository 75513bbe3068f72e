# SPDX-License-Identifier: Apache-2.0
"""What other libraries' steps do to a training run, and what ours do not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytorch_optimizer")

from scripts.benchmarks import bench_gpu
from scripts.benchmarks.common.peer_checks import checks
from scripts.benchmarks.common.peers import LOOPS
from tests.floor import is_older

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf_sam", "hf_sam, gsam"])
def test_ours_survive_all_of_it(name: str) -> None:
    found = checks(LOOPS[name])
    assert float(found.pop("accumulation").removeprefix("differs by ").replace("exact", "0")) < 1e-14
    assert found == {
        "bf16 autocast around the step": "exact",
        "dropout masks": "the same in both passes",
        "resume from its state_dict": "exact",
        "in the Trainer": "runs",
    }


@pytest.mark.slow
@pytest.mark.skipif(is_older("pytorch-optimizer", "4"), reason="pytorch-optimizer 3.3 resumes otherwise")
@pytest.mark.parametrize("name", ["pytorch-optimizer SAM", "davda54/sam, from its formula", "pytorch-optimizer GSAM"])
def test_the_checks_see_what_breaks_elsewhere(name: str) -> None:
    found = checks(LOOPS[name])
    assert "off by" in found["bf16 autocast around the step"]
    assert found["dropout masks"] == "others in the second pass"
    assert "Error" in found["in the Trainer"]
    assert ("differs" in found["resume from its state_dict"]) is name.startswith("davda")


@pytest.mark.everything
@pytest.mark.slow
def test_the_benchmark_measures_time_memory_and_what_breaks(tmp_path: Path) -> None:
    output = tmp_path / "peers.json"
    size = ["--hidden", "256", "--layers", "2", "--batch", "4", "--length", "16", "--rounds", "1", "--steps", "3"]
    sides = ["hf_sam", "davda54/sam, from its formula", "SAMTrainer"]
    command = [sys.executable, "scripts/benchmarks/bench_peers.py", *size, "--sides", *sides, "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    results = json.loads(output.read_text(encoding="utf-8"))
    assert set(results["results"]) == {"two plain passes", "two plain passes of the Trainer", *sides}
    assert set(results["checks"]) == set(sides[:2])
    for name, row in results["results"].items():
        assert 0.3 < row["time_ratio"] < 3.0, name  # a single round: loads on the machine come and go
        ((first, second),) = row["seconds_and_seconds_in_passes"]
        for seconds, inside in (first, second):
            assert inside == 0 if "Trainer" in name else 0 < inside < seconds, name  # nobody watches the Trainer's
        assert (row["share_outside_passes"] is None) == ("Trainer" in name), name
    assert results["results"]["davda54/sam, from its formula"]["extra_copies_of_the_weights"] > 0.8
    assert results["results"]["hf_sam"]["extra_copies_of_the_weights"] < 1.05


def test_the_gpu_part_is_refused_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert bench_gpu.main([]) == 2
    assert "there is no CUDA device here: add --dry-run" in capsys.readouterr().err


@pytest.mark.slow
def test_the_gpu_part_can_be_tried_anywhere(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    assert bench_gpu.main(["--dry-run", "--output", str(output)]) == 0
    rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert {row["model"] for row in rows} == set(bench_gpu.MODELS)
    assert {row["case"] for row in rows} == set(bench_gpu.CASES)
    assert all(row["time_ratio"] > 0 and row["peak_bytes"] > 0 for row in rows)


def test_what_does_not_fit_into_the_time_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "gpu.json"
    assert bench_gpu.main(["--dry-run", "--minutes", "-1", "--output", str(output)]) == 0
    assert "Not measured, for want of time: BERT-base fp32" in capsys.readouterr().out
    assert len(json.loads(output.read_text(encoding="utf-8"))["left_out"]) == 9
