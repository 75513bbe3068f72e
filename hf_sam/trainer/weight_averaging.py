# SPDX-License-Identifier: Apache-2.0
"""Average the weights over the later steps of a run, with any Trainer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_sam._checks import check_count, check_number
from hf_sam.vectors.shards import is_dtensor

logger = logging.getLogger(__name__)

FILE = "weight_averaging.safetensors"
SPLIT = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)
BEST = (
    "`WeightAveraging` leaves the average in the model at the end of a run, and load_best_model_at_end=True loads the "
    "weights of one step. Set it to False, or leave the callback out."
)
SHARDED = (
    "`WeightAveraging` needs whole weights on each process, and this run shards them. Use DDP, or average the "
    "checkpoints afterwards."
)
NO_FILE = (
    "`WeightAveraging` had begun before step {step}, where this run resumes, and {path} is not there, is damaged, or "
    "holds the average of another model. Resume in the output_dir that the checkpoint was written to, where it was "
    "written with this callback."
)
NOTHING = "`WeightAveraging` has averaged nothing: the run ended at step %d, and the average begins after step %d."


class WeightAveraging(TrainerCallback):
    """Average the weights over the later steps of a run, and leave the average in the model at its end.

        average <- average + (w - average) / n                 after the n-th step that counts (Izmailov et al. 2018)
        average <- decay * average + (1 - decay) * w           with `decay`

    `Trainer(..., callbacks=[WeightAveraging()])`, or any other Trainer, sharpness-aware or not. The run itself keeps
    its bits: nothing is drawn from the random streams, and evaluations and checkpoints during the run have the weights
    of their step. After `train()`, `evaluate` and `save_model` have the average. A checkpoint keeps the average so far
    in a file of its own, and a run that is resumed from it ends in the same bits.

    Averaged are the weights that are trained when the average begins, at least in float32, and floating-point buffers.
    The running statistics of batch normalisation are then the mean of those of the steps;
    `torch.optim.swa_utils.update_bn` computes them anew. The average takes as much memory as these weights in float32.

    Args:
        start: share of the run after which it begins, in [0, 1).
        decay: of an exponential moving average, in (0, 1); None for the mean.
        every: optimizer steps from one that counts to the next, >= 1.

    Raises:
        TypeError: if an argument is no number.
        ValueError: if it is out of range; in `train()`, where the best step is loaded at the end, or the average of a
            resumed run is not found.
        NotImplementedError: in `train()`, for sharded weights.
    """

    def __init__(self, start: float = 0.5, *, decay: float | None = None, every: int = 1) -> None:
        self.start = check_number("WeightAveraging", "start", start, least=0, below=1)
        self.decay = None if decay is None else check_number("WeightAveraging", "decay", decay, above=0, below=1)
        self.every = check_count("WeightAveraging", "every", every)
        self.count = 0
        self._average: dict[str, Tensor] = {}

    @torch.no_grad()
    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Begin anew, or with the average in the checkpoint that is resumed."""
        del control, kwargs
        if args.load_best_model_at_end:
            raise ValueError(BEST)
        if AcceleratorState().distributed_type in SPLIT or any(map(is_dtensor, model.parameters())):
            raise NotImplementedError(SHARDED)
        self.count, self._average = 0, {}
        if state.global_step - self._begin(state) >= self.every:
            self._load(_path(args, state), model, state.global_step)

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Take in the weights after this optimizer step."""
        del args, control, kwargs
        since = state.global_step - self._begin(state)
        if since < 1 or since % self.every:
            return
        self.count += 1
        if not self._average:
            self._average = {name: _wide(tensor) for name, tensor in _averaged(model)}
            return
        named = dict(_named(model))
        tensors = [named[name].detach().to(average) for name, average in self._average.items()]
        share = 1 / self.count if self.decay is None else 1 - self.decay
        torch._foreach_lerp_(list(self._average.values()), tensors, share)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the average so far to the checkpoint."""
        del control, kwargs
        path = _path(args, state)
        if self.count and args.should_save and path.parent.is_dir():
            written = path.with_suffix(".tmp")
            save_file({n: t.cpu() for n, t in self._average.items()}, written, metadata={"count": str(self.count)})
            written.replace(path)

    @torch.no_grad()
    def on_train_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Put the average into the model."""
        del args, control, kwargs
        if not self.count:
            logger.warning(NOTHING, state.global_step, self._begin(state))
        named = dict(_named(model))
        for name, average in self._average.items():
            named[name].copy_(average)
        self._average = {}  # as much memory as the model

    def _begin(self, state: Any) -> int:
        return int(self.start * state.max_steps)

    def _load(self, path: Path, model: nn.Module, step: int) -> None:
        named = dict(_named(model))
        try:
            with safe_open(path, framework="pt") as file:
                self.count = int((file.metadata() or {}).get("count", 0))
                self._average = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError) as error:
            raise ValueError(NO_FILE.format(step=step, path=path)) from error
        fits = all(name in named and named[name].shape == tensor.shape for name, tensor in self._average.items())
        if not (self.count and fits):
            raise ValueError(NO_FILE.format(step=step, path=path))
        self._average = {name: tensor.to(named[name].device) for name, tensor in self._average.items()}


def _path(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / FILE


def _named(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _averaged(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the weights that are trained and the buffers that can be averaged."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [*trained, *((name, buffer) for name, buffer in model.named_buffers() if buffer.is_floating_point())]


def _wide(tensor: Tensor) -> Tensor:
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
