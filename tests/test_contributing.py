# SPDX-License-Identifier: Apache-2.0
"""Is what CONTRIBUTING.md tells newcomers true? Its example is run, its paths, targets and numbers are looked up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hf_sam import SAM, VARIANTS, SAMConfig
from tests.conformance.checks import problems
from tests.test_layout import LEVELS, ROOT
from tests.tolerances import RELATIVE

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the page's only block of Python; its variant is taken out of VARIANTS after the test."""
    (source,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    monkeypatch.setitem(VARIANTS, "root", SAM)
    names: dict[str, Any] = {"__name__": "an_example"}
    exec(compile(source, "CONTRIBUTING.md", "exec"), names)
    return names


def test_the_example_registers_the_class_it_shows(example: dict[str, Any]) -> None:
    assert VARIANTS["root"] is example["RootSAM"]
    assert isinstance(example["config"], SAMConfig)


def test_the_example_climbs_as_its_formula_says(example: dict[str, Any]) -> None:
    g = torch.tensor([4.0, -9.0, 0.0], dtype=torch.float64)
    (epsilon,) = example["RootSAM"]().ascend([torch.zeros_like(g)], [g], 0.5).epsilon
    expected = 0.5 * torch.tensor([2.0, -3.0, 0.0], dtype=torch.float64) / 13**0.5
    torch.testing.assert_close(epsilon, expected, rtol=RELATIVE[torch.float64], atol=0)


@pytest.mark.parametrize("bad", [0.0, torch.inf, torch.nan])
def test_the_example_leaves_a_bad_gradient_alone(example: dict[str, Any], bad: float) -> None:
    g = torch.tensor([bad, bad])
    (epsilon,) = example["RootSAM"]().ascend([torch.ones(2)], [g], 0.5).epsilon
    assert epsilon.tolist() == [0, 0]


@pytest.mark.slow
@pytest.mark.usefixtures("example")
def test_the_example_passes_the_conformance_tests(tmp_path: Path) -> None:
    assert not list(problems("root", "as it is", tmp_path))


def test_every_path_is_there() -> None:
    """In backticks, with a slash; "<name>" stands for a file to come."""
    paths = re.findall(r"`((?:hf_sam|scripts|tests)/[^`\s]*)`", TEXT)
    assert len(paths) > 20
    assert not [path for path in paths if not (ROOT / path.partition("<")[0]).exists()]


def test_every_registry_is_where_the_page_says() -> None:
    places = re.findall(r"`([A-Z]+)` in `(\S+\.py)`", TEXT)
    assert {name for name, _ in places} == {"VARIANTS", "SCHEDULES", "ENGINES", "TASKS"}
    for name, path in places:
        assert re.search(rf"^{name}\b.* = [{{(]", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), name


def test_every_folder_of_the_library_has_its_level() -> None:
    rows = re.findall(r"^\| (\d)(?: to (\d))? \| (`.*) \|$", TEXT, re.MULTILINE)
    named = {
        entry.removesuffix("/").removesuffix(".py"): range(int(first), int(last or first) + 1)
        for first, last, entries in rows
        for entry in re.findall(r"`(\w+(?:/|\.py))`", entries)
    }
    assert not {entry: levels for entry, levels in named.items() if LEVELS[entry] not in levels}
    folders = {path.parent.name for path in (ROOT / "hf_sam").glob("*/__init__.py")}
    assert not folders - set(named)


def test_every_target_is_one_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`|; )make ([a-z-]+)", TEXT, re.MULTILINE))
    assert {"setup", "test", "test-all", "lint", "format", "results"} <= named <= targets


def test_the_tolerances_are_those_of_the_table() -> None:
    for dtype, tolerance in RELATIVE.items():
        assert re.search(rf"{tolerance:.0e}\s+in\s+{str(dtype).removeprefix('torch.')}", TEXT), dtype


def test_the_message_is_one_of_the_librarys() -> None:
    (message,) = re.findall(r"^> (.*)$", TEXT, re.MULTILINE)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SAMConfig(rho=-0.1)


def test_the_hooks_before_a_commit_need_no_network() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {repository["repo"] for repository in config["repos"]} == {"local"}
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert {hook["language"] for hook in hooks} <= {"system", "pygrep"}
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    tools = re.findall(r"bin/(\w+(?: \w+)?)", lint[1])
    entries = [hook["entry"].removeprefix(".venv/bin/") for hook in hooks]
    assert len(tools) == 3
    assert not [tool for tool in tools if not any(entry.startswith(tool) for entry in entries)]
