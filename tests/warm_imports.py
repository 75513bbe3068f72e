# SPDX-License-Identifier: Apache-2.0
"""What `tests.warm` imports once for all its processes. Nothing is computed here: threads would not be copied."""

from __future__ import annotations

import gc
from contextlib import suppress

import torch
import torch.distributed.fsdp
import torch.distributed.tensor.parallel
import transformers.distributed
import transformers.integrations  # noqa: F401

import hf_sam
import hf_sam.sharpness  # noqa: F401
import tests.distributed.models
import tests.promises.runs  # noqa: F401

with suppress(ImportError):
    import deepspeed  # noqa: F401 (by accelerate wherever it is installed)

torch.set_num_threads(1)
gc.collect()
gc.freeze()  # the Trainer collects garbage at each start, and none of these objects are
