# SPDX-License-Identifier: Apache-2.0
"""What does the loss look like around what was trained, with SAM and without?"""

from __future__ import annotations

import json
from pathlib import Path

from hf_sam.sharpness import Landscape, plots

SHOWN = "fashion-1"
"""The report that is drawn."""


def draw(results: Path, path: Path) -> None:
    """Draw the loss on the same square around both checkpoints, on one scale."""
    models = json.loads((results / "flatness" / f"{SHOWN}.json").read_text(encoding="utf-8"))["models"]
    found = {name: Landscape(**report["landscape_2d"]) for name, report in models.items()}
    plots.landscape_2d(found).savefig(path, dpi=150)
