# SPDX-License-Identifier: Apache-2.0
"""Do the recipes for several machines and for Ray start one training, on processes of this machine?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.launching import DIGITS, SCRIPT, finish, free_port, results, start
from tests.warm import ROOT, TIMEOUT, environment

pytestmark = pytest.mark.distributed

RECIPES = ROOT / "scripts" / "recipes"
# Ray tells its makers how it is used, unless told not to, and gives workers little time on a busy machine.
QUIETLY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
RUN = """
import json, sys
from transformers import BertForSequenceClassification
from scripts.recipes.ray_train import run

found = []
for workers in (1, 2):
    settings = {"steps": 3, "use_gpu": False, "scope": "batch", "workers": workers, "batch_size": 16 // workers}
    result = run({**settings, "storage": sys.argv[1]})
    model = BertForSequenceClassification.from_pretrained(result.checkpoint.path)
    found.append({**result.metrics, "weights": [p.norm().item() for p in model.parameters()]})
print(json.dumps(found))
"""


def test_two_nodes_train_one_model(tmp_path: Path) -> None:
    command = ["bash", str(RECIPES / "two_nodes.sh"), SCRIPT, *DIGITS, "--output_dir", str(tmp_path / "out")]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "PROCESSES": "1"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    finish(*[start(command, NODE_RANK=str(rank), PATH=path, **meeting) for rank in (0, 1)])
    assert results(tmp_path / "out")["processes"] == 2


def test_a_node_without_a_number_is_told(tmp_path: Path) -> None:
    kept = {k: v for k, v in environment().items() if k != "NODE_RANK"}
    found = subprocess.run(
        ["bash", str(RECIPES / "two_nodes.sh")], env=kept, capture_output=True, text=True, cwd=tmp_path
    )
    assert found.returncode != 0
    assert "NODE_RANK: is the number of this machine, from 0" in found.stderr


def test_two_workers_of_ray_train_as_one(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason='ray is not installed: pip install "ray[train]"')
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    pipes = {"capture_output": True, "text": True, "timeout": TIMEOUT}
    found = subprocess.run(command, env={**environment(), **QUIETLY}, cwd=ROOT, **pipes)
    assert found.returncode == 0, found.stderr[-3000:]
    one, two = json.loads(found.stdout.splitlines()[-1])
    assert (one["processes"], two["processes"]) == (1, 2)
    for key in ("sam/epsilon_norm", "sam/grad_cosine", "train_loss", "weights"):
        assert two[key] == pytest.approx(one[key], rel=1e-4), key
