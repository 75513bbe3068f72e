# SPDX-License-Identifier: Apache-2.0
"""How does DeepSpeed run on several processes without an accelerator, as it does with one? Tests only.

accelerate takes the processes of DeepSpeed on CPUs for one each: every process would see all the data, and sums over
processes would be left out. transformers takes bf16 for granted on GPUs only.
"""

from __future__ import annotations

import os

import deepspeed
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import training_args

_prepare_backend = PartialState._prepare_backend


def _backend_of_cpus(self: PartialState, cpu: bool = False, *args: object, **kwargs: object) -> tuple[str, object]:
    backend, kind = _prepare_backend(self, cpu, *args, **kwargs)
    return (backend, kind) if backend is not None else ("gloo", DistributedType.MULTI_CPU)


def enable() -> None:
    """Let accelerate see all processes of DeepSpeed on CPUs from now on in this process."""
    assert os.environ["DS_ACCELERATOR"] == "cpu"  # read when it is imported
    PartialState._prepare_backend = _backend_of_cpus
    training_args.is_torch_bf16_gpu_available = lambda: True
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled: gloo is fast enough
