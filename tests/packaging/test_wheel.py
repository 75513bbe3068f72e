# SPDX-License-Identifier: Apache-2.0
"""Is what would be published complete, no more than the package, and enough to train with? Builds without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import hf_sam
from tests.packaging.environments import install, missing, requirements_of
from tests.warm import ROOT

pytest.importorskip("build")
pytest.importorskip("twine")
pytestmark = pytest.mark.slow

LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "outputs", "runs")
BESIDE = {
    "CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg",
}  # fmt: skip
# A plain script: its own model, lists as data; SAMTrainer takes the Trainer's place.
TRAINING = """
import torch
from transformers import TrainingArguments

import hf_sam
from hf_sam import SAMConfig, SAMTrainer


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x, labels):
        logits = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


data = [{"x": torch.tensor([float(i % 2), 1.0]), "labels": i % 2} for i in range(16)]
args = TrainingArguments("out", max_steps=4, logging_steps=2, save_strategy="no", use_cpu=True, disable_tqdm=True)
trainer = SAMTrainer(Line(), args, train_dataset=data, sam_config=SAMConfig(rho=0.05))
trainer.train()
assert trainer.state.log_history[0]["sam/epsilon_norm"] > 0.049, trainer.state.log_history
print(hf_sam.__file__)
"""
COMMAND = """
import sys
from importlib.metadata import entry_points

(command,) = entry_points(group="console_scripts", name="hf-sam")
sys.exit(command.load()(sys.argv[1:]))
"""
FINETUNE = [
    "finetune",
    "--task",
    "digits",
    "--output_dir",
    "out",
    "--use_cpu",
    "--max_steps",
    "2",
    "--disable_tqdm",
    "True",
]
EXTRAS = {
    "sharpness": "from hf_sam.sharpness import SharpnessAnalyzer; import matplotlib, scipy",
    "deepspeed": "import deepspeed, hf_sam.engines.deepspeed",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the two archives, the wheel made from the source archive."""
    folder = tmp_path_factory.mktemp("built")
    sources = shutil.copytree(ROOT, folder / "sources", ignore=LEFT_OUT)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(sources)]
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"hf_sam-{hf_sam.__version__}-py3-none-any.whl"


def package_files() -> set[str]:
    """Return the files of the package in this checkout, as a wheel names them."""
    paths = (path for path in (ROOT / "hf_sam").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == package_files()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_source_archive_holds_what_the_wheel_is_built_from(built: Path) -> None:
    with tarfile.open(built / f"hf_sam-{hf_sam.__version__}.tar.gz") as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert {name for name in names if not name.startswith("hf_sam.egg-info/")} == package_files() | BESIDE


def test_the_index_will_take_both(built: Path) -> None:
    files = sorted(map(str, built.iterdir()))
    assert len(files) == 2
    told = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout
    assert told.stdout.count("PASSED") == 2


def run(python: Path, cwd: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in an environment, far from this checkout."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"DS_ACCELERATOR": "cpu"}
    return subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True, env=environment, cwd=cwd)


def test_the_wheel_alone_trains_with_what_it_asks_for(wheel: Path, tmp_path: Path) -> None:
    python = install(wheel, tmp_path / "environment")
    found = run(python, tmp_path, TRAINING)
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.splitlines()[-1]).is_relative_to(tmp_path)
    absent = run(python, tmp_path, COMMAND, *FINETUNE)  # the environment holds no more than it is asked for
    assert absent.returncode == 2
    assert 'pip install "hf-sam[cli]"' in absent.stderr


def test_the_command_of_the_wheel_trains_with_its_extra(wheel: Path, tmp_path: Path) -> None:
    python = install(wheel, tmp_path / "environment", "cli")
    found = run(python, tmp_path, COMMAND, *FINETUNE)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "out" / "all_results.json").is_file()


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_what_it_is_for(extra: str, wheel: Path, tmp_path: Path) -> None:
    if name := missing(requirements_of(wheel), extra):
        pytest.skip(f"{name} is not installed")
    python = install(wheel, tmp_path / "environment", extra)
    found = run(python, tmp_path, EXTRAS[extra])
    assert found.returncode == 0, found.stderr
