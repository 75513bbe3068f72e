# SPDX-License-Identifier: Apache-2.0
"""Measure how flat the loss is around checkpoints, and compare them: `hf-sam measure` for a checkout.

python scripts/measure.py outputs/digits-sam
python scripts/measure.py --robustness adamw=runs/adamw sam=runs/sam --task sst2 --train_file train.parquet
"""

from __future__ import annotations

import sys
from pathlib import Path

# `python scripts/measure.py` puts scripts/ on the path, the import below needs the folder above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_sam.cli.common.programs import FILES
from hf_sam.cli.measure import main

if __name__ == "__main__":
    sys.exit(main(names=FILES))
