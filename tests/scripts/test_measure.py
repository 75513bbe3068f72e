# SPDX-License-Identifier: Apache-2.0
"""Does scripts/measure.py measure what it says of which checkpoint, and does its report work in a browser?"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hf_sam.cli import finetune, measure

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.slow
QUICK = ["--examples", "24", "--landscape", "3", "--folds", "3", "--products", "6", "--eigenvalues", "2"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        finetune.main([
            "--use_cpu", "--max_steps", "2", "--output_dir", str(folder / f"run-{seed}"), "--seed", str(seed),
            "--disable_tqdm", "True", "--save_strategy", "no", "--eval_strategy", "no",
        ])  # fmt: skip
    return [f"first={folder / 'run-1'}", str(folder / "run-2")]


@pytest.fixture(scope="module")
def written(checkpoints: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flatness")
    more = ["--density", "5", "--interpolate", "3", "--report", str(folder), "--disable_tqdm", "True"]
    assert measure.main([*checkpoints, *QUICK, *more]) == 0
    return folder


def test_the_report_holds_every_measurement_of_every_checkpoint(written: Path) -> None:
    report = json.loads((written / "report.json").read_text(encoding="utf-8"))
    assert list(report["models"]) == ["first", "run-2"]
    for found in report["models"].values():
        assert found["settings"]["examples"] == 24
        assert found["lambda_max"] == found["top_eigenvalues"]["values"][0] > 0
        assert found["worst_case"]["value"] >= found["sam_sharpness"]["value"]
        assert len(found["landscape_1d"]["losses"]) == 5
        assert [len(row) for row in found["landscape_2d"]["losses"]] == [3, 3, 3]
        assert found["landscape_2d"]["losses"][1][1] == pytest.approx(found["loss"], rel=1e-5)
        assert len(found["density"]["nodes"][0]) == 5
    assert report["comparison"]["folds"] == [8, 8, 8]
    assert len(report["interpolation"]["first to run-2"]["metrics"]) == 3
    assert report["environment"]["torch"]
    figures = {"interpolation.png", "landscape_1d.png", "landscape_2d.png", "spectrum.png"}
    assert {path.name for path in written.iterdir()} == {"report.html", "report.json"} | figures


def test_the_table_is_printed(checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = [*QUICK, "--landscape", "0", "--folds", "0", "--report", str(tmp_path), "--disable_tqdm", "True"]
    assert measure.main([checkpoints[0], *quick, "--card"]) == 0
    card = Path(checkpoints[0].removeprefix("first="), "README.md").read_text(encoding="utf-8")
    assert "### Flatness of the loss" in card
    assert "### Sharpness-aware minimization" in card
    out = capsys.readouterr().out
    for text in ("first", "lambda_max", "trace", "worst case", "does not predict the accuracy", "report.html"):
        assert text in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "CHECKPOINT"),
        (["a=x", "a=y"], "'a' is there twice"),
        (["nowhere/at/all"], "--model_name_or_path nowhere/at/all cannot be loaded"),
        (["x", "--examples", "many"], "--examples"),
        (["x", "--no_such"], "--no_such"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure.main([*arguments, "--report", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


PROBE = """<script>addEventListener("load", async () => {
  const plot = document.querySelector(".js-plotly-plot");
  const shown = () => plot.data.map(trace => trace.visible);
  const before = shown();
  [...plot.querySelectorAll(".updatemenu-button")][1].dispatchEvent(new MouseEvent("click", {bubbles: true}));
  await new Promise(done => setTimeout(done, 300));
  await Plotly.relayout(plot, {"scene.camera.eye": {x: 0.2, y: 2, z: 1}});
  document.body.dataset.found = JSON.stringify({
    before, after: shown(), eye: plot._fullLayout.scene.camera.eye, canvas: !!plot.querySelector("canvas"),
    loaded: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
    images: [...document.images].every(image => image.naturalWidth > 100),
  });
});</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_in_a_browser_the_surface_turns_and_switches_without_a_network(written: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text((written / "report.html").read_text(encoding="utf-8") + PROBE, encoding="utf-8")
    found = in_browser(page, tmp_path / "profile")
    assert found["canvas"]
    assert found["before"] == [True, False]
    assert found["after"] == [False, True]
    assert found["eye"] == {"x": 0.2, "y": 2, "z": 1}
    assert found["loaded"] == []
    assert found["images"]


def in_browser(page: Path, profile: Path) -> dict[str, Any]:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--enable-unsafe-swiftshader",
        f"--user-data-dir={profile}", "--virtual-time-budget=20000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    match = re.search(r'data-found="([^"]*)"', done.stdout)
    assert match, done.stderr[-2000:]
    return json.loads(html.unescape(match[1]))
