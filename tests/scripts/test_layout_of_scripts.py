# SPDX-License-Identifier: Apache-2.0
"""Do the programs of users stand without those of the maintainers, and is every path that a text names there?"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_layout import ROOT, imported, name_of, sources, tracked_files

BENCHMARKS = ROOT / "scripts" / "benchmarks"
RESULTS = BENCHMARKS / "results"
# What users run (2) stands on the tasks and what they share (1), what the maintainers run (3) on both.
LEVELS = {"hf_sam.cli.common": 1, "hf_sam.cli.tasks": 1, "scripts.benchmarks": 3}
PROGRAM = 2
MODULES = {name_of(path): path for path in sources("scripts") + sources("hf_sam/cli")}
PROGRAMS = [path for path in MODULES.values() if "__main__" in path.read_text(encoding="utf-8")]
NAMED = re.compile(r"(?<![\w./-])scripts/[\w./-]*(?=([{$*<]?))")


def level_of(module: str) -> int:
    """Return the level of a module of scripts/ or hf_sam/cli/ by its full name."""
    return next((level for folder, level in LEVELS.items() if f"{module}.".startswith(f"{folder}.")), PROGRAM)


def upward(module: str, source: str) -> Iterator[str]:
    """Yield the imports of a higher level, and those that do not say where they go."""
    for name in imported(source):
        if name.startswith("."):
            yield f"{module} imports {name}: write the whole name"
        elif name.startswith(("scripts.", "hf_sam.cli.")) and level_of(name) > level_of(module):
            yield f"{module} imports {name}"


def written_out(path: str, goes_on: str) -> str:
    """Return the path up to its first placeholder: a part in capitals (GRID.yaml), or one that a brace follows."""
    parts = (path.rpartition("/")[0] if goes_on else path.rstrip(".")).split("/")
    return "/".join(itertools.takewhile(lambda part: not part.partition(".")[0].isupper(), parts))


def missing(text: str) -> Iterator[str]:
    """Yield the paths under scripts/ that a text names and that are not there; results may be written later."""
    for found in NAMED.finditer(text):
        path = ROOT / written_out(found[0], found[1])
        if not path.exists() and RESULTS not in path.parents:
            yield found[0]


@pytest.mark.parametrize("module", [module for module in MODULES if module not in {"scripts", "hf_sam.cli"}])
def test_no_import_points_up(module: str) -> None:
    assert not list(upward(module, MODULES[module].read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hf_sam.cli.finetune", "from scripts.benchmarks.compare import main"),
        ("hf_sam.cli.common.errors", "def f():\n    from scripts.benchmarks import plot"),
        ("hf_sam.cli.common.errors", "import hf_sam.cli.finetune"),
        ("hf_sam.cli.tasks.glue", "from hf_sam.cli import finetune"),
        ("hf_sam.cli.tasks.glue", "from scripts.benchmarks.common.grids import Grid"),
        ("hf_sam.cli.tasks.glue", "from .base import Task"),
    ],
)
def test_an_import_that_points_up_is_found(module: str, source: str) -> None:
    assert list(upward(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "scripts.benchmarks.compare",
            "from hf_sam.cli.finetune import main\nfrom hf_sam.cli.common.errors import UserError",
        ),
        ("scripts.benchmarks.bench_gpu", "from scripts.benchmarks.bench import run_quietly"),
        (
            "hf_sam.cli.find_rho",
            "import torch\nfrom hf_sam.cli.finetune import make_trainer\nfrom hf_sam.cli.tasks import TASKS",
        ),
        ("hf_sam.cli.common.summary", "from hf_sam.cli.tasks.base import Task"),
    ],
)
def test_an_import_that_points_down_is_left_alone(module: str, source: str) -> None:
    assert not list(upward(module, source))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_program_finds_the_packages_from_any_folder(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    inserted = re.search(r"sys\.path\.insert\(0, str\(Path\(__file__\)\.resolve\(\)\.parents\[(\d)\]\)\)", text)
    if inserted:
        assert path.parents[int(inserted[1])] == ROOT
    else:  # by way of its own folder
        assert "HERE = Path(__file__).resolve().parent\nsys.path.insert(0, str(HERE.parent))" in text
        assert path.parents[1] == ROOT


def test_every_path_that_a_text_names_is_there() -> None:
    texts = [
        path
        for path in tracked_files()
        if path.suffix in {".py", ".md", ".yaml", ".toml", ""} and RESULTS not in path.parents
        if path.name not in {"CHANGELOG.md", Path(__file__).name}  # what was once; what is made up below
    ]
    assert len(texts) > 200
    found = {path: list(missing(path.read_text(encoding="utf-8"))) for path in texts}
    assert not {str(path.relative_to(ROOT)): names for path, names in found.items() if names}


def test_a_path_that_is_not_there_is_found() -> None:
    gone = ["scripts/compare.py", "scripts/grids/small.yaml", "scripts/results/bench", "scripts/benchmarks/plots.py"]
    gone += ["scripts/grids/GRID.yaml", "scripts/results/$(STAGE)", "scripts/evidence/{name}"]
    assert len(list(missing("; ".join(gone)))) == len(gone)
    there = ["scripts/", "scripts/benchmarks/plot.py.", "scripts/benchmarks/grids/NAME.yaml", "tests/scripts/any.py"]
    there += [
        "scripts/benchmarks/grids/gpu_$(STAGE)",
        "scripts/accelerate/*.yaml",
        "scripts/benchmarks/results/new.json",
    ]
    assert not list(missing(" ".join(there)))
