# SPDX-License-Identifier: Apache-2.0
"""What does `import hf_sam` do to a process? Nothing but define names."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# What transformers' Trainer imports anyway is not ours to answer for, so it comes first.
pytestmark = pytest.mark.slow  # imports transformers once more

PROBE = """
import json, logging, os, sys, warnings
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments
import torch, safetensors.torch

def state():
    return {
        "environment": dict(os.environ),
        "warning filters": [str(f) for f in warnings.filters],
        "log handlers": [str(h) for h in logging.getLogger().handlers],
        "random numbers": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "default dtype": str(torch.get_default_dtype()),
    }

modules, before = set(sys.modules), state()
import hf_sam
after = state()
new = sorted({name.split(".")[0] for name in set(sys.modules) - modules})
print(json.dumps({"new": new, "changed": [key for key in before if before[key] != after[key]]}))
"""


@pytest.fixture(scope="module")
def probe() -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)


def test_import_brings_in_nothing_that_the_trainer_does_not(probe: subprocess.CompletedProcess[str]) -> None:
    new = json.loads(probe.stdout.splitlines()[-1])["new"]
    assert "hf_sam" in new
    assert not {name for name in new if name not in sys.stdlib_module_names} - {"hf_sam"}


def test_import_changes_nothing_in_the_process(probe: subprocess.CompletedProcess[str]) -> None:
    assert json.loads(probe.stdout.splitlines()[-1])["changed"] == []


def test_import_says_nothing(probe: subprocess.CompletedProcess[str]) -> None:
    assert len(probe.stdout.splitlines()) == 1
    assert "hf_sam" not in probe.stderr
