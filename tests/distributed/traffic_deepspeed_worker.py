# SPDX-License-Identifier: Apache-2.0
"""As `traffic_worker`, for jobs of DeepSpeed."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.distributed import deepspeed_on_cpu, traffic_worker, worker

if __name__ == "__main__":
    deepspeed_on_cpu.enable()
    worker.run = traffic_worker.run
    worker.main(Path(sys.argv[1]), Path(sys.argv[2]))
