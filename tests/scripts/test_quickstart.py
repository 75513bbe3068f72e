# SPDX-License-Identifier: Apache-2.0
"""Does the notebook run in a kernel and show what it is to show, and is it kept without outputs?"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.floor import evaluates_in_notebooks
from tests.test_layout import ROOT

NOTEBOOK = ROOT / "scripts" / "examples" / "quickstart.ipynb"


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None and not cell["metadata"] for cell in code)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook, run from top to bottom in a kernel of its own."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    folder = tmp_path_factory.mktemp("notebook")
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    environment |= {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    patience = {"timeout": 1800, "startup_timeout": 600}  # a busy machine imports slowly
    client = nbclient.NotebookClient(notebook, **patience, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    return notebook


def shown_by(notebook: Any, source: str, kind: str) -> str:
    """Return what the cells with these words in them have shown in one of the formats."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and source in cell.source]
    assert cells
    outputs = [output for cell in cells for output in cell.outputs]
    return "\n".join(output.data.get(kind, "") for output in outputs if "data" in output)


@pytest.mark.slow
@evaluates_in_notebooks
def test_the_table_of_a_run_has_a_column_for_what_sam_measured(executed: Any) -> None:
    table = shown_by(executed, "sharp.train()", "text/html")
    for name in ("Step", "Training Loss", "sam/rho", "sam/sharpness", "sam/epsilon_norm"):
        assert f"<th>{name}</th>" in table
    assert table.count("<td>0.200000</td>") >= 6  # the radius, in the line of each log
    assert "<th>sam/rho</th>" not in shown_by(executed, "plain.train()", "text/html")


@pytest.mark.slow
@evaluates_in_notebooks
def test_the_range_test_is_a_table_and_a_picture(executed: Any) -> None:
    assert "<b>Start with rho = " in shown_by(executed, "find_rho(", "text/html")
    assert len(shown_by(executed, "found.plot()", "image/png")) > 10_000
    assert len(shown_by(executed, "find_rho(", "text/plain")) < 200


@pytest.mark.slow
@evaluates_in_notebooks
def test_both_methods_learn(executed: Any) -> None:
    printed = [o.text for cell in executed.cells for o in cell.get("outputs", []) if o.output_type == "stream"]
    lines = [line for text in printed for line in text.splitlines() if "of the test images" in line]
    accuracies = {line.partition(":")[0]: float(line.split()[1]) for line in lines}
    assert accuracies.keys() == {"AdamW", "SAM"}
    assert min(accuracies.values()) > 50
