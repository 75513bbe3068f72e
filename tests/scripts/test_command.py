# SPDX-License-Identifier: Apache-2.0
"""Does the command of an installed hf_sam run the programs, under the name that the user typed?"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_sam.cli import command, find_rho, finetune, measure
from hf_sam.cli.common.programs import COMMAND, FILES, Names

ROOT = Path(__file__).resolve().parents[2]
MODULE = Names("python -m hf_sam")
SHORT = ["--max_steps", "1", "--use_cpu", "--eval_strategy", "no", "--save_strategy", "no", "--do_eval", "False"]
Main = Callable[..., int]

# A process in which a package cannot be found, as where the extra is not installed.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

def find_spec(cls, name, *where):
    return None if name.partition(".")[0] == {package!r} else find(name, *where)

find, PathFinder.find_spec = PathFinder.find_spec, classmethod(find_spec)
from hf_sam.cli.command import main
sys.exit(main([{program!r}, "--help"]))
"""


def help_of(main: Main, names: Names, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["--help"], names=names)
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("main", "program", "file"),
    [
        (finetune.main, "finetune", "finetune.py"),
        (find_rho.main, "find-rho", "find_rho.py"),
        (measure.main, "measure", "measure.py"),
    ],
)
def test_the_usage_names_what_was_typed(
    main: Main, program: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for names, usage in ((COMMAND, f"hf-sam {program}"), (FILES, file), (MODULE, f"python -m hf_sam {program}")):
        text = help_of(main, names, capsys)
        assert text.startswith(f"usage: {usage} ")
        others = [other for other in ("hf-sam ", "finetune.py", "find_rho.py", "python -m") if other in text]
        assert len({other.endswith(".py") for other in others}) == 1
        assert (names is MODULE) == ("python -m" in others)


def test_lines_to_type_are_those_of_the_user() -> None:
    text = "Find it.\n\n    hf-sam find-rho recipe.yaml\n\nTakes what hf-sam finetune takes."
    assert COMMAND.in_text(text) == text
    assert MODULE.in_text(text) == text.replace("hf-sam", "python -m hf_sam")
    files = "Find it.\n\n    python scripts/find_rho.py recipe.yaml\n\nTakes what finetune.py takes."
    assert FILES.in_text(text) == files


def test_an_error_names_the_program_as_it_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["find-rho", "--resume_from_checkpoint", "x", "--disable_tqdm", "True"]) == 2
    assert "not for hf-sam find-rho" in capsys.readouterr().err
    assert find_rho.main(["--resume_from_checkpoint", "x"], names=FILES) == 2
    assert "not for find_rho.py" in capsys.readouterr().err


def test_without_a_program_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    assert command.main(["--help"], command="python -m hf_sam") == 0
    listed = capsys.readouterr().out
    assert "usage: hf-sam PROGRAM" in listed
    assert "usage: python -m hf_sam PROGRAM" in listed
    assert not [name for name in ("finetune", "find-rho", "measure") if f"\n  {name} " not in listed]


def test_an_unknown_program_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["find_rho"]) == 2
    assert capsys.readouterr().err == (
        "error: hf-sam knows finetune, find-rho, measure, got 'find_rho', did you mean 'find-rho'?\n"
    )


@pytest.mark.parametrize("program", command.PROGRAMS)
def test_without_the_extra_one_line_says_what_to_install(
    program: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"hf_sam.cli.{program.replace('-', '_')}")
    assert command.main([program]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert re.fullmatch(
        rf'error: hf-sam {program} needs the package \'rich[\w.]*\': pip install "hf-sam\[cli\]"\n', written.err
    )


def test_a_module_of_ours_that_is_missing_is_no_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hf_sam.cli.measure", None)
    with pytest.raises(ModuleNotFoundError, match=r"hf_sam\.cli\.measure"):
        command.main(["measure"])


@pytest.mark.slow
@pytest.mark.parametrize("package", ["datasets", "sklearn"])
def test_in_a_process_without_the_extra(package: str, tmp_path: Path) -> None:
    code = WITHOUT.format(package=package, program="finetune")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr == f'error: hf-sam finetune needs the package {package!r}: pip install "hf-sam[cli]"\n'
    assert not list(tmp_path.iterdir())


def test_the_console_entry_is_the_command() -> None:
    entry = re.search(r'^hf-sam = "([\w.]+):(\w+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert entry is not None
    assert getattr(importlib.import_module(entry[1]), entry[2]) is command.main


@pytest.mark.slow
@pytest.mark.parametrize(
    "launch", [["-m", "hf_sam"], ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "hf_sam"]]
)
def test_it_trains_as_a_module_from_any_folder(launch: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, *launch, "finetune", *SHORT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "outputs" / "digits-sam" / "all_results.json").read_text(encoding="utf-8"))
    assert results["task"] == "digits"


@pytest.mark.slow
def test_all_three_programs_run_from_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(["finetune", *SHORT, "--output_dir", "run"]) == 0
    quick = ["--steps", "1", "--batches", "1", "--rhos", "0.1", "--use_cpu"]
    assert command.main(["find-rho", *quick, "--output_dir", "found"]) == 0
    less = ["--examples", "16", "--landscape", "0", "--products", "2", "--eigenvalues", "1", "--use_cpu"]
    assert command.main(["measure", "run", *less, "--report", "flat"]) == 0
    assert {"run", "found", "flat"} <= {path.name for path in tmp_path.iterdir()}
