# SPDX-License-Identifier: Apache-2.0
"""How flat is the loss around a checkpoint, and is one flatter than another? A table, figures, a report to turn around.

    python scripts/measure.py outputs/digits-sam
    python scripts/measure.py adamw=runs/adamw sam=runs/sam --task sst2 --train_file train.parquet --examples 256

Takes checkpoints of one architecture, each as FOLDER or NAME=FOLDER (or a name on the Hub), and what finetune.py takes
to say which data: the loss is that of the training examples. All checkpoints see the same examples, tokenised for the
first one. Writes report.json, report.html (no network is needed to open it) and figures into --report.
"""

from __future__ import annotations

import sys
from pathlib import Path

# `python scripts/measure.py` puts scripts/ on the path, the import below needs the folder above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_sam.cli.measure import main

if __name__ == "__main__":
    sys.exit(main())
