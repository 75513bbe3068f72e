# SPDX-License-Identifier: Apache-2.0
"""What is not even looked at for examples in docstrings, since it cannot be imported."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("deepspeed") else ["deepspeed_on_cpu.py", "deepspeed_worker.py"]
