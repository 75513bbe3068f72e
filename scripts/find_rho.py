# SPDX-License-Identifier: Apache-2.0
"""Find the rho that a run should start with: `hf-sam find-rho` for a checkout.

python scripts/find_rho.py scripts/recipes/digits_noise_sam.yaml
python scripts/find_rho.py --task sst2 --model_name_or_path google-bert/bert-base-uncased --sam_variant asam
"""

from __future__ import annotations

import sys
from pathlib import Path

# `python scripts/find_rho.py` puts scripts/ on the path, the import below needs the folder above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_sam.cli.common.programs import FILES
from hf_sam.cli.find_rho import main

if __name__ == "__main__":
    sys.exit(main(names=FILES))
