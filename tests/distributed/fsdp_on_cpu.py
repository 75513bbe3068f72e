# SPDX-License-Identifier: Apache-2.0
"""How do accelerate's FSDP and tensor parallelism run without an accelerator, so that they can be tested anywhere?

accelerate only recognises FSDP on GPUs, trains plain DDP on CPUs instead, and refuses tensor parallelism there.
Everything below those decisions works on CPUs, with gloo. Tests only.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import fully_sharded_data_parallel

_init = AcceleratorState.__init__


def _init_with_fsdp(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    first = not AcceleratorState._shared_state
    _init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if first and fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin


class _Fsdp1(fully_sharded_data_parallel.FullyShardedDataParallel):
    """FSDP1 compares devices by name, and accelerate calls the CPU `cpu:0`."""

    def __init__(self, module: nn.Module, *args: Any, device_id: Any = None, **kwargs: Any) -> None:
        del device_id
        super().__init__(module, *args, device_id=torch.device("cpu"), **kwargs)


def enable() -> None:
    """Let accelerate use FSDP on CPUs from now on in this process."""
    AcceleratorState.__init__ = _init_with_fsdp
    fully_sharded_data_parallel.FullyShardedDataParallel = _Fsdp1
    ParallelismConfig._validate_accelerator = lambda self, accelerator: None
