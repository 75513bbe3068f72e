# SPDX-License-Identifier: Apache-2.0
"""SAM's part of a Trainer's checkpoint: saved beside the optimizer's, compared with the run that resumes from it."""

from __future__ import annotations

import logging
from typing import Any

import torch

from hf_sam.config.sam_config import PLAIN, SAMConfig
from hf_sam.engines.supported import is_sharded
from hf_sam.radius.schedules import AUTO
from hf_sam.trainer.run_totals import STATE, RunTotals
from hf_sam.trainer.shared_arguments import FIELDS
from hf_sam.trainer.state_file import load_state, save_state

logger = logging.getLogger(__name__)

SETTINGS = {"variant": "sam_variant", "radius": "rho_schedule", "gate": "sam_gate"}
"""By part of the state, the setting that has to be the same for it to be taken over."""


def save_sam_state(trainer: Any, directory: str) -> None:
    """Save what SAM remembers: one state for all processes, or one for each that has its own.

    Args:
        trainer: with a `RunState` in `_sam`.
        directory: the checkpoint's.
    """
    config, args = trainer.sam_config, trainer.args
    if config.sam_variant == PLAIN:
        return
    run = trainer._sam
    state = run.planner_for(trainer, config).state_dict()
    processes = args.world_size if state and _each_has_its_own(trainer, config) else 1
    state.update(run.averages.so_far(args.device if args.world_size > 1 else None).state_dict())
    if processes > 1 or args.should_save:
        process = args.process_index if processes > 1 else 0
        step = trainer.state.global_step
        save_state(directory, config, state, step=step, process=process, processes=processes)
    if processes > 1:
        torch.distributed.barrier()  # what the Trainer writes next says that the checkpoint is complete


def _each_has_its_own(trainer: Any, config: SAMConfig) -> bool:
    """Return whether a variant's memory differs between processes: its shards, or its own gradients."""
    return bool(trainer.args.world_size > 1 and (config.sam_scope != "batch" or is_sharded(trainer)))


def load_sam_state(trainer: Any, checkpoint: str | None) -> None:
    """Take back what `save_sam_state` saved; say what differs from the run that wrote it.

    Args:
        trainer: with a `RunState` in `_sam`.
        checkpoint: its folder; None for a run that resumes from none.

    Raises:
        ValueError: if the state is damaged, or does not fit this run.
    """
    config = trainer.sam_config
    if checkpoint is None or config.sam_variant == PLAIN:
        return
    saved = load_state(checkpoint, process=trainer.args.process_index, processes=trainer.args.world_size)
    if saved is None:
        logger.warning("No SAM state in %s: SAM starts afresh from this checkpoint.", checkpoint)
        return
    written, state = saved
    changed = [name for name in FIELDS if written.get(name) != getattr(config, name)]
    if "sam_variant" in changed and any(not name.startswith(("radius.", "gate.", STATE)) for name in state):
        raise ValueError(
            f"`sam_variant` is {config.sam_variant!r}, but {checkpoint} holds the state of "
            f"{written.get('sam_variant')!r}. Resume with that variant, or start from the model alone."
        )
    for name in changed:
        old, new = written.get(name), getattr(config, name)
        logger.warning("%s was %r when %s was saved, now it is %r.", name, old, checkpoint, new)
    parts = {part for part, setting in SETTINGS.items() if setting not in changed}
    if AUTO in (written.get("rho"), config.rho) and "rho" in changed:
        parts.discard("radius")
    try:
        trainer._sam.averages.totals = RunTotals.from_state(state)
        state = {name: value for name, value in state.items() if not name.startswith(STATE)}
        trainer._sam.planner_for(trainer, config).load_state_dict(state, tuple(parts))
    except ValueError as error:
        raise ValueError(
            f"The SAM state in {checkpoint} does not fit this run ({error}). Resume from another checkpoint, or "
            "delete sam_state.json there to go on without it."
        ) from error
