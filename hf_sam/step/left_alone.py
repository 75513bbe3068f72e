# SPDX-License-Identifier: Apache-2.0
"""Which objects are searched for state, and which belong to a library and are left alone."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from enum import Enum
from types import SimpleNamespace
from typing import Any

ENGINES = ("torch.distributed", "torch.nn.parallel", "torch._dynamo", "torch.fx", "accelerate", "deepspeed")
"""Packages of modules around a model, which keep an account of their own passes."""
LIBRARIES = {
    *("torch", "numpy", "transformers", "accelerate", "deepspeed", "datasets", "tokenizers", "huggingface_hub"),
    *("safetensors", "peft", "bitsandbytes", "pandas", "pyarrow", "PIL", "sentencepiece", "tqdm", "requests", "httpx"),
    *("wandb", "mlflow", "tensorboard", "tensorboardX", "comet_ml", "clearml", "neptune", "trackio", "swanlab"),
    *("dvclive", "ray", "vllm", "matplotlib", "hf_sam"),
}
"""Packages whose objects are left alone; modules, tensors, arrays and generators aside."""
SHARED_WITH_THREADS = {"_thread", "threading", "queue", "multiprocessing", "concurrent", "asyncio", "socket", "_io"}


@functools.lru_cache(maxsize=4096)
def is_users_own(cls: type, itself: bool = False) -> bool:
    """Return whether objects of a class are neither of the standard library nor of one that is left alone.

    Args:
        cls: the class.
        itself: whether its bases do not matter.
    """
    if issubclass(cls, Enum):
        return False
    plain = {"abc", "typing", "collections"}
    roots = {root_of(base.__module__) for base in (cls.__mro__[:1] if itself else cls.__mro__) if base is not object}
    return cls is SimpleNamespace or not any(
        root in LIBRARIES or (root in sys.stdlib_module_names and (itself or root not in plain)) for root in roots
    )


def root_of(module: Any) -> str:
    """Return the name of the package that a module is in; of what is no name (a slot of a class's), nothing."""
    return module.partition(".")[0] if isinstance(module, str) else ""


def is_iterator(value: Any) -> bool:
    """Return whether `value` can be run through only once; files aside."""
    return isinstance(value, Iterator) and root_of(type(value).__module__) not in SHARED_WITH_THREADS
