# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a Hugging Face classifier, or train one from scratch, with Sharpness-Aware Minimization.

    python scripts/finetune.py                                       # a small ViT on scikit-learn's digits
    python scripts/finetune.py scripts/recipes/digits_noise_sam.yaml --rho 0.2
    accelerate launch scripts/finetune.py --task sst2 --model_name_or_path google-bert/bert-base-uncased --rho 0.05

A recipe is a YAML file of arguments; the command line wins over it. `--sam_variant none` is the plain Trainer.
"""

from __future__ import annotations

import sys
from pathlib import Path

# `python scripts/finetune.py` puts scripts/ on the path, the import below needs the folder above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_sam.cli.common.processes import part
from hf_sam.cli.finetune import main

if __name__ == "__main__":
    status = main()
    part()
    sys.exit(status)
