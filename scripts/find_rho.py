# SPDX-License-Identifier: Apache-2.0
"""Which rho should a run start with? A range test, like that of a learning rate finder, a minute long.

    python scripts/find_rho.py scripts/recipes/digits_noise_sam.yaml
    python scripts/find_rho.py --task sst2 --model_name_or_path google-bert/bert-base-uncased --sam_variant asam

Takes the recipe and the arguments of finetune.py. Trains some plain steps, sees how far the loss rises at many radii on
a few batches, and recommends the largest radius with a small rise. Nothing of that training is kept. The numbers go to
<output_dir>/find_rho.json, the picture to <output_dir>/find_rho.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

# `python scripts/find_rho.py` puts scripts/ on the path, the import below needs the folder above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_sam.cli.find_rho import main

if __name__ == "__main__":
    sys.exit(main())
