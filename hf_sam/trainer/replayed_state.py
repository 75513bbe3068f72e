# SPDX-License-Identifier: Apache-2.0
"""What the passes of a trainer can change: in the model, the loss, and what a subclass keeps on the trainer."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from hf_sam.engines.fsdp1 import fsdp1_modules
from hf_sam.step.reach import Reach
from hf_sam.step.replay import ChangedState

LEFT_ALONE = frozenset(
    (
        *("_sam", "args", "model", "model_wrapped", "optimizer", "lr_scheduler", "accelerator", "state", "control"),
        *("callback_handler", "train_dataset", "eval_dataset", "data_collator", "processing_class", "tokenizer"),
        *("compute_metrics", "preprocess_logits_for_metrics", "model_init", "compute_loss_func", "is_in_train"),
        *("current_gradient_accumulation_steps", "_train_batch_size", "_memory_tracker", "optimizer_cls_and_kwargs"),
        *("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_signature_columns"),
    )
)
"""Attributes of a Trainer that are none of its passes'."""
ROOM = 64 * 2**20
"""Bytes that the first look may copy beyond the size of the trained parameters, which a perturbation copies anyway."""


def changed_state(trainer: Any) -> ChangedState:
    """Return what is going to know what the passes of a run change.

    Args:
        trainer: with a `RunState` in `_sam`.
    """
    return ChangedState(partial(_find, trainer), partial(_room, trainer))


def _find(trainer: Any) -> Reach:
    """Search the model, the trainer's other attributes and its loss."""
    run = trainer._sam
    model = run.engine.model
    reach = Reach([trainer, run, *(p for p in run.candidates if p.requires_grad)])
    if fsdp1_modules(model):
        for module in model.modules():  # what else it holds are views of flat parameters, which come and go
            _visit_buffers(module, reach)
    else:
        reach.visit(model, "model")
    reach.visit_namespace(trainer, "trainer", None, LEFT_ALONE | {*getattr(trainer, "carried", ())})
    reach.visit(getattr(trainer, "compute_loss_func", None), "compute_loss_func")
    return reach


def _visit_buffers(module: nn.Module, reach: Reach) -> None:
    reach.visit(module._buffers, f"{type(module).__name__}._buffers")


def _room(trainer: Any) -> int:
    trained: list[Tensor] = [p for p in trainer._sam.candidates if p.requires_grad]
    return ROOM + sum(p.numel() * p.element_size() for p in trained)
