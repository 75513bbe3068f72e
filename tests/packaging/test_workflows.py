# SPDX-License-Identifier: Apache-2.0
"""Do the workflows run targets that exist, on the Python versions that the package names? Read, not run."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

import hf_sam
from tests.warm import ROOT

WORKFLOWS = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in ROOT.glob(".github/workflows/*.yml")}
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def runs(workflow: dict[str, Any]) -> list[str]:
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


def targets(workflow: dict[str, Any]) -> set[str]:
    """Return the targets of make that a workflow names, those of a matrix or of a condition too."""
    parts = [
        part for job in workflow["jobs"].values() for part in job.get("strategy", {}).get("matrix", {}).get("part", [])
    ]
    commands = [run.removeprefix("make ") for run in runs(workflow) if run.startswith("make ")]
    quoted = [name for command in commands for name in re.findall(r"[&|] '([\w-]+)'", command)]
    return {*parts, *quoted, *(command for command in commands if "${{" not in command)}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_step_is_a_target_of_the_makefile(name: str) -> None:
    assert targets(WORKFLOWS[name]) <= TARGETS
    others = [run for run in runs(WORKFLOWS[name]) if not run.startswith("make ")]
    assert len(others) == (1 if name == "publish" else 0)  # whether the tag is the version


def test_what_ci_runs_is_run_there_too() -> None:
    here = set(re.findall(r"^make ([\w-]+)$", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE))
    assert here
    assert here <= targets(WORKFLOWS["ci"])


def test_the_python_versions_are_those_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", text)
    assert WORKFLOWS["ci"]["jobs"]["fast"]["strategy"]["matrix"]["python"] == named
    assert f'requires-python = ">={named[0]}"' in text


def test_only_the_job_that_publishes_may_ask_for_an_identity() -> None:
    for name, workflow in WORKFLOWS.items():
        assert workflow["permissions"] == {"contents": "read"}
        asking = [job for job, how in workflow["jobs"].items() if "id-token" in how.get("permissions", {})]
        assert asking == (["publish"] if name == "publish" else [])


def test_the_citation_is_of_this_version_and_place() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["version"] == hf_sam.__version__
    assert f'Homepage = "{cited["repository-code"]}"' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_issue_forms_ask_distinct_questions() -> None:
    forms = [path for path in ROOT.glob(".github/ISSUE_TEMPLATE/*.yml") if path.stem != "config"]
    assert len(forms) == 3
    for path in forms:
        form = yaml.safe_load(path.read_text("utf-8"))
        assert {"name", "description", "body"} <= form.keys()
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids))
        assert any(field.get("validations", {}).get("required") for field in form["body"])
