# SPDX-License-Identifier: Apache-2.0
"""Does scripts/measure.py measure what it says of which checkpoint, and can its report be read anywhere?"""

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
            "--rho", "0.05",
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
    quick = [*QUICK, "--landscape", "0", "--folds", "0", "--disable_tqdm", "True"]
    assert measure.main([checkpoints[0], *quick, "--card", "--output_dir", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").exists(), "as of the other programs"
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
        (["x", "--no_flatness"], "--no_flatness does nothing without --robustness"),
        (["x", "--robustness", "--calibration", "2"], "--calibration must be train, test or a share"),
        (["x", "--robustness", "--origin", "y"], "--origin needs a checkpoint to merge with"),
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


@pytest.fixture(scope="module")
def robust(checkpoints: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robustness")
    more = ["--robustness", "--no_flatness", "--calibration", "0.3", "--merge", checkpoints[1], "--report", str(folder)]
    assert measure.main([*checkpoints, *more, "--disable_tqdm", "True", "--card"]) == 0
    return folder


def test_robustness_is_in_the_report_the_card_and_the_figures(robust: Path, checkpoints: list[str]) -> None:
    report = json.loads((robust / "report.json").read_text(encoding="utf-8"))
    found = report["robustness"]
    assert found["examples"] == "252 evaluation examples"
    assert found["calibration"] == "108 other evaluation examples"
    assert report["models"] == {}
    for reports in found["reports"].values():
        names = [each["condition"]["name"] for each in reports[0]["measurements"]]
        assert names[:3] == ["as trained", "int8 dynamic", "int8 weights"]
        assert {"pruned, 70 %", "jpeg, severity 5", "merged, average"} <= set(names)
        assert reports[0]["measurements"][0]["scores"]["ece_scaled"] is not None
    assert found["comparison"]["differences"]["int4 weights"]["accuracy"]["run-2"].keys() == {"mean", "low", "high"}
    figures = {"reliability", "risk_coverage", "bits", "sparsity", "merging"}
    figures |= {f"corruption_{name}" for name in ("noise", "blur", "contrast", "jpeg")}
    assert {path.stem for path in robust.glob("*.png")} == figures
    assert "### Robustness" in Path(checkpoints[1], "README.md").read_text(encoding="utf-8")


def test_robustness_is_in_the_printed_table(
    checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--robustness", "--no_flatness", "--report", str(tmp_path), "--disable_tqdm", "True"]
    assert (
        measure.main([f"a={checkpoints[1]},{checkpoints[1]}", f"b={checkpoints[1]},{checkpoints[1]}", *arguments]) == 0
    )
    out = capsys.readouterr().out
    for text in ("Calibration error (ECE)", "int8 dynamic", "pruned, 50 %", "noise, severity 5", "±", "over seeds"):
        assert text in out
    assert "lambda_max" not in out


@pytest.mark.parametrize("which", ["written", "robust"])
def test_the_report_says_what_was_measured_on_what_and_is_small(which: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which) / "report.html"
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 1_000_000
    assert not re.findall(r"<script|<link|src=\"(?!data:)|href=", text)  # nothing is loaded, nothing is run
    first = html.unescape(re.search(r"<p>(.*?)</p>", text)[1])
    for said in (
        "first and run-2, 2 checkpoints of ViTForImageClassification",
        "on the task digits",
        "hf_sam",
        "torch",
    ):
        assert said in first
    assert re.search(r"measured on \d\d \w+ \d{4}", first)
    images = re.findall(r'<img alt="([^"]+)" src="data:image/svg', text)
    assert len(images) == len(list(path.parent.glob("*.png")))
    assert "hf-sam measure " in text  # the command
    assert not re.search(r">(gradient_norm|sam_sharpness|ece_adaptive|roc_auc)<", text)  # plain names


WIDTHS = """<body><script>addEventListener("load", () => {
  const frame = document.createElement("iframe");
  frame.width = 420; frame.height = 900;
  frame.onload = () => {
    const page = frame.contentDocument;
    document.body.dataset.found = JSON.stringify({
      width: page.documentElement.scrollWidth,
      images: [...page.images].every(image => image.naturalWidth > 100),
      letters: Math.min(...[...page.querySelectorAll("td,p,small,figcaption")].map(
        each => parseFloat(frame.contentWindow.getComputedStyle(each).fontSize))),
      loaded: performance.getEntriesByType("resource").map(each => each.name).filter(name => !name.startsWith("data:")),
    });
  };
  frame.srcdoc = REPORT;
  document.body.append(frame);
});</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("which", ["written", "robust"])
def test_in_a_browser_of_420_pixels_nothing_is_cut_off(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    text = (request.getfixturevalue(which) / "report.html").read_text(encoding="utf-8")
    page = tmp_path / "wrapped.html"
    page.write_text(WIDTHS.replace("REPORT", json.dumps(text).replace("</", "<\\/")), encoding="utf-8")
    found = in_browser(page, tmp_path / "profile")
    assert found["width"] <= 420
    assert found["images"]
    assert found["letters"] >= 11
    assert found["loaded"] == []


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
