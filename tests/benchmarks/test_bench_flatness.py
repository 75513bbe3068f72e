# SPDX-License-Identifier: Apache-2.0
"""Does the benchmark of lambda_max measure the libraries that are there, on the same loss?"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from hf_sam.sharpness.lanczos import KEPT
from scripts.benchmarks import bench_flatness

pytestmark = [pytest.mark.slow, pytest.mark.data]


def test_it_prints_and_writes_what_each_library_finds(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = real_data / "glue" / "sst2" / "train.parquet"
    output = tmp_path / "flatness.json"
    sizes = ["--examples", "4", "--batch", "2", "--rounds", "1"]
    bench_flatness.main(["--data", str(file), *sizes, "--output", str(output)])
    found = json.loads(output.read_text(encoding="utf-8"))
    present = [name for name, each in bench_flatness.LIBRARIES.items() if importlib.util.find_spec(each.module)]
    assert list(found["results"]) == present
    for row in found["results"].values():
        assert row["lambda_max"] == pytest.approx(found["results"]["hf_sam"]["lambda_max"], rel=1e-2)
    assert found["results"]["hf_sam"]["products"] <= KEPT
    assert 1 < found["gradients_per_product"] < 10
    assert "hf_sam" in capsys.readouterr().out
