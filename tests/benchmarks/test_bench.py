# SPDX-License-Identifier: Apache-2.0
"""A SAM step costs two passes and one copy of the weights (`make bench` prints both for a larger model)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_step_costs_two_passes_and_one_copy_of_the_weights(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    size = ["--hidden", "512", "--layers", "5", "--batch", "8", "--length", "64", "--rounds", "2"]
    command = [sys.executable, "scripts/benchmarks/bench.py", *size, "--cases", "sam", "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    results = json.loads(output.read_text())["results"]
    assert results["sam"]["weights_bytes"] > 4 * 30e6
    assert 0.9 < results["sam"]["extra_copies_of_the_weights"] <= 1.05
    # A quarter of the tokens of `make bench`, where the work that does not grow with them weighs four times as much;
    # one pass too many would be 3.
    assert 1.7 < results["sam"]["time_ratio"] < 2.4
