# SPDX-License-Identifier: Apache-2.0
"""Run a command: `python -m hf_sam finetune`, `accelerate launch -m hf_sam finetune`."""

from __future__ import annotations

import sys

from hf_sam.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
