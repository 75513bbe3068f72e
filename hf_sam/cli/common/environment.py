# SPDX-License-Identifier: Apache-2.0
"""The machine and the versions of a run: what is needed to get the same numbers again."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import accelerate
import datasets
import torch
import transformers

import hf_sam


def environment() -> dict[str, Any]:
    """Return package versions, the commit and the hardware."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "hf_sam": hf_sam.__version__,
        "commit": _commit(),
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "datasets": datasets.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
        "threads": torch.get_num_threads(),
    }


def write_results(path: Path | None, results: dict[str, Any]) -> None:
    """Write what a benchmark found as JSON; without a path nothing."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # not a checkout
