# SPDX-License-Identifier: Apache-2.0
"""Train a tiny model on this process and count what it sends at each step; run by torchrun like `worker`."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback

from tests.distributed import worker
from tests.distributed.worker import Job

KINDS = {
    "allreduce_": "all-reduce",
    "all_reduce": "all-reduce",
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "all_gather_into_tensor": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_": "reduce-scatter",
    "reduce_scatter_tensor": "reduce-scatter",
    "reduce_": "reduce",
    "broadcast_": "broadcast",
}
GROWS = {"all_gather_into_tensor"}
"""Those whose result is not among their arguments and larger than these: it has to be computed."""
WAITING = {"wait_tensor", "barrier", "monitored_barrier_"}

Traffic = dict[str, tuple[int, int]]
"""By kind of collective, the number of calls and the bytes of the whole tensor, gathered or not yet scattered."""


def size(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(tensors) if isinstance(t, Tensor))


class Counter(TorchDispatchMode):
    """Counts the collectives that are started inside."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, list[int]] = defaultdict(list)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        found = func(*args, **(kwargs or {}))
        if name.startswith(("c10d::", "_c10d_functional::")) and (kind := name.partition("::")[2]) not in WAITING:
            sizes = [size(arg) for arg in args]
            if kind in GROWS:
                sizes.append(size(found))
            self.calls[KINDS[kind]].append(max(sizes))
        return found

    def drain(self) -> Traffic:
        """Return what was counted since the last call."""
        found = {kind: (len(sizes), sum(sizes)) for kind, sizes in sorted(self.calls.items())}
        self.calls.clear()
        return found


class AtSteps(TrainerCallback):
    """Notes what was counted during each optimizer step."""

    def __init__(self, counter: Counter) -> None:
        self.counter, self.steps = counter, []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.counter.drain()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append(self.counter.drain())


def bytes_of(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def run(job: Job, folder: Path) -> dict[str, Any]:
    trainer, counter = worker.trainer_of(job, folder), Counter()
    observer = AtSteps(counter)
    trainer.add_callback(observer)
    model: nn.Module = trainer.model
    held = {"parameters": bytes_of(model.parameters()), "buffers": bytes_of(model.buffers())}
    with counter:
        trainer.train()
    return {"traffic": observer.steps, **held, "world": torch.distributed.get_world_size()}


if __name__ == "__main__":
    worker.run = run
    worker.main(Path(sys.argv[1]), Path(sys.argv[2]))
