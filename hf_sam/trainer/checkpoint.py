# SPDX-License-Identifier: Apache-2.0
"""What of SAM is in a checkpoint of the Trainer, and does it fit the run that resumes from it?"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from hf_sam.config.sam_config import PLAIN, SAMConfig
from hf_sam.engines.supported import is_sharded
from hf_sam.radius.schedules import AUTO
from hf_sam.trainer.state_file import FIELDS, load_state, save_state
from hf_sam.trainer.step_planner import StepPlanner

# The mixin stands before a Trainer in the bases of a class; type checkers need to be told.
if TYPE_CHECKING:
    from transformers import Trainer as SomeTrainer
else:
    SomeTrainer = object

logger = logging.getLogger(__name__)

SETTINGS = {"direction": "sam_variant", "radius": "rho_schedule", "gate": "sam_gate"}
"""By part of the state, the setting that has to be the same for it to be taken over."""


class ResumesSAM(SomeTrainer):
    """A mixin for a Trainer that keeps SAM's state beside the optimizer's."""

    @property
    def sam_config(self) -> SAMConfig:
        """The settings in force; the trainer's."""
        raise NotImplementedError

    def _sam_policy(self, config: SAMConfig) -> StepPlanner:
        raise NotImplementedError

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save SAM's state beside the optimizer's: one for all processes, or one for each that has its own."""
        super()._save_optimizer_and_scheduler(output_dir)
        config = self.sam_config
        if config.sam_variant == PLAIN:
            return
        state = self._sam_policy(config).state_dict()
        processes = self.args.world_size if state and self._each_has_its_own(config) else 1
        if processes > 1 or self.args.should_save:
            process = self.args.process_index if processes > 1 else 0
            save_state(output_dir, config, state, process=process, processes=processes)
        if processes > 1:
            torch.distributed.barrier()  # what the Trainer writes next says that the checkpoint is complete

    def _each_has_its_own(self, config: SAMConfig) -> bool:
        """Return whether a direction's memory differs between processes: its shards, or its own gradients."""
        return bool(self.args.world_size > 1 and (config.sam_scope != "batch" or is_sharded(self)))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load SAM's state after the optimizer's; say what differs from the run that wrote it."""
        super()._load_optimizer_and_scheduler(checkpoint)
        config = self.sam_config
        if checkpoint is None or config.sam_variant == PLAIN:
            return
        saved = load_state(checkpoint, process=self.args.process_index, processes=self.args.world_size)
        if saved is None:
            logger.warning("No SAM state in %s: SAM starts afresh from this checkpoint.", checkpoint)
            return
        written, state = saved
        changed = [name for name in FIELDS if written.get(name) != getattr(config, name)]
        if "sam_variant" in changed and any(not name.startswith(("radius.", "gate.")) for name in state):
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
            self._sam_policy(config).load_state_dict(state, tuple(parts))
        except ValueError as error:
            raise ValueError(
                f"The SAM state in {checkpoint} does not fit this run ({error}). Resume from another checkpoint, or "
                "delete sam_state.json there to go on without it."
            ) from error
