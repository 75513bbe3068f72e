# SPDX-License-Identifier: Apache-2.0
"""Does every example run and learn, and is it short, marked and listed?"""

from __future__ import annotations

import importlib.machinery
import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.test_layout import ROOT

FOLDER = ROOT / "scripts" / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
LINES = 60
NEEDS = {
    "hyperparameter_search": ["optuna"],
    "lightning_loop": ["lightning"],
    "robustness_report": ["torchmetrics", "hf_sam.robustness"],
    "sentence_embeddings": ["sentence_transformers"],
    "trl_sft_lora": ["trl", "peft"],
}
# What an example prints at its end, and how large the numbers in it are at least.
PRINTS = {
    "accelerate_loop": (r"test accuracy: (.+) %", [80]),
    "custom_loop": (r"test accuracy: (.+) %", [80]),
    "find_wrong_labels": (
        r"SAM: .* (\d+) % are wrong \(precision\), .* (\d+) % of all .* ROC-AUC (.+)\n",
        [60, 60, 0.8],
    ),
    "hyperparameter_search": (r"test accuracy: (.+) %", [60]),
    "lightning_loop": (r"test accuracy: (.+) %", [80]),
    "robustness_report": (r"int8 weights: accuracy AdamW (.+) %, SAM (.+) %; difference", [60, 60]),
    "sentence_embeddings": (r"about cooking: (.+), of one about cooking and one about sailing", [0.7]),
    "seq2seq": (r"animals named rightly: (.+) %", [60]),
    "sharpness_callback": (r"SAM, step  60: lambda_max +(.+), rise (.+)", [0, 0]),
    "trainer": (r"test accuracy: (.+) %", [80]),
    "trl_sft_lora": (r"loss: (.+) at first, (.+) at last", [1.5, 0]),
    "weight_averaging": (r"SAM: .* with the last weights, (.+) % with their mean", [60]),
}
every = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


@pytest.mark.slow
@every
def test_an_example_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from accelerate.state import AcceleratorState, GradientState

    for package in NEEDS.get(path.stem, []):
        pytest.importorskip(package)
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
    GradientState._reset_state()
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    printed, (words, least) = capsys.readouterr().out, PRINTS[path.stem]
    found = re.search(words, printed)
    assert found, printed
    assert all(float(value) >= limit for value, limit in zip(found.groups(), least, strict=True)), found[0]


@every
def test_an_example_is_short_and_marks_what_differs(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES
    assert f"python scripts/examples/{path.name}" in text
    assert "What differs has `# SAM`." in text
    assert len(re.findall(r"  # SAM\b|^ *# SAM:", text, re.MULTILINE)) >= 2


@every
def test_an_example_hides_no_package(path: Path) -> None:
    """Python looks into the folder of a program first: `import lightning` would find an example called lightning.py."""
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != FOLDER]
    assert path.stem not in sys.stdlib_module_names
    assert importlib.machinery.PathFinder.find_spec(path.stem, elsewhere) is None


def test_every_example_is_listed_and_tested() -> None:
    listed = re.findall(r"^\| \[([\w.]+)\]\(\1\)", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted([*(path.name for path in EXAMPLES), "quickstart.ipynb"])
    assert sorted(PRINTS) == [path.stem for path in EXAMPLES]
