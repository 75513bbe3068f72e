# SPDX-License-Identifier: Apache-2.0
"""How does a Trainer become sharpness-aware without a training loop of its own?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer, TrainingArguments

from hf_sam.config.sam_config import PLAIN, SAMConfig
from hf_sam.engines.deepspeed import step_deferred
from hf_sam.step.measurement import Measurement
from hf_sam.trainer.arguments import config_of, resolve_config, with_sam_fields
from hf_sam.trainer.checkpoint import ResumesSAM
from hf_sam.trainer.model_card import WritesModelCard
from hf_sam.trainer.reload import ReloadsRenamedTensors
from hf_sam.trainer.training_step import RunsPasses
from hf_sam.trainer.unsupported import refuse_request, refuse_trainer

logger = logging.getLogger(__name__)

ROUNDED_AWAY = (
    "The weights are stored in 16 bits, which rounds much of a small perturbation away: a norm of %.3g was asked for, "
    "%.3g was realised (ratio %.2f). Load the model with dtype=torch.float32 and train with bf16=True or fp16=True, "
    "which keeps the weights in 32 bits; or set sam_rounding='stochastic', which is right on average, with noise."
)
MOSTLY_NOISE = (
    "The weights are stored in 16 bits, and stochastic rounding drowns the perturbation in noise: a norm of %.3g was "
    "asked for, %.3g was realised (cosine about %.2f). Take a larger rho, or load the model with dtype=torch.float32 "
    "and train with bf16=True or fp16=True, which keeps the weights in 32 bits."
)
LEAST_COSINE = 0.1


class SAMTrainerMixin(RunsPasses, ResumesSAM, WritesModelCard, ReloadsRenamedTensors):
    """Sharpness-aware steps for any `transformers.Trainer`: `class MyTrainer(SAMTrainerMixin, Seq2SeqTrainer)`.

    Each optimizer step runs forward and backward twice (Foret et al. 2021, algorithm 1), through the Trainer's own
    `training_step`, and leaves the gradient at the perturbed weights in `.grad`. Everything else is the Trainer's:
    clipping, the optimizer, the scheduler, logging, checkpoints. Nobody sees perturbed weights.

    Args:
        *args: of the Trainer.
        sam_config: SAM's settings beside any `TrainingArguments`. Leave it out when `args` are
            `SAMTrainingArguments`, which hold them already; `SAMConfig()` when neither is given.
        **kwargs: of the Trainer.

    Attributes:
        in_descent_pass: True while the second pass runs. A `compute_loss` that counts something counts only when it
            is False, or better, where `ascent_fraction` may be below 1, when `counts_examples` is True.
        counts_examples: True in the pass over all examples, once for each: the first one, or the second one where the
            first sees only a part of them.
        counters: names of attributes in which `compute_loss` counts without asking; the second pass leaves them as
            they were. TRL's by default; a subclass may name more.

    Raises:
        ValueError: if settings are given twice or out of range.
        NotImplementedError: for engines, optimizers and trainers that two passes would get wrong.
    """

    def __init__(self, *args: Any, sam_config: SAMConfig | None = None, **kwargs: Any) -> None:
        given = next((a for a in (*args, *kwargs.values()) if isinstance(a, TrainingArguments)), None)
        config = resolve_config(given, sam_config)
        active = config.sam_variant != PLAIN
        if active:
            refuse_request(type(self), (*args, *kwargs.values()))  # before the Trainer makes folders and repositories
        self._forget_run()
        super().__init__(*args, **kwargs)
        self.args: Any = with_sam_fields(self.args, config)
        if active:
            refuse_trainer(self, config)

    @property
    def sam_config(self) -> SAMConfig:
        """The settings in force, read from `args` so that a hyperparameter search can change them."""
        return config_of(self.args)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does, from a fresh SAM state or the one in the checkpoint that is resumed."""
        self._forget_run()
        return super().train(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run the passes that are due at this micro-batch.

        Returns:
            The clean loss of this micro-batch, L(w), as the Trainer scales it (promise 6).
        """
        config = self.sam_config
        if config.sam_variant == PLAIN:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        try:
            with step_deferred(self.accelerator, model):
                return self._sam_training_step(model, inputs, num_items_in_batch, config)
        except BaseException:
            # A smaller batch may be tried next (auto_find_batch_size), from the start or from a checkpoint: it must not
            # replay these micro-batches, nor go on with what this attempt remembers.
            self._forget_window()
            self._policy = None
            raise

    def _tell_realised_norm(self, report: Measurement) -> None:
        """Say once how much of epsilon survives in 16-bit weights; the only place that waits for the device."""
        if report.asked_norm is None or self._told_realised_norm or not report.usable:
            return
        asked, realised = report.asked_norm.item(), report.epsilon_norm.item()
        if not asked > 0:
            return
        self._told_realised_norm = True
        if self.sam_config.sam_rounding == "nearest":
            logger.warning(ROUNDED_AWAY, asked, realised, realised / asked)
        elif asked < LEAST_COSINE * realised:  # on average the asked-for epsilon is in it whole; the rest is noise
            logger.warning(MOSTLY_NOISE, asked, realised, asked / realised)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Let every process know the averages over all of them where the Trainer does so with its loss."""
        several = self.args.world_size > 1 and self.sam_config.sam_variant != PLAIN
        if several and self.control.should_log and self.state.global_step > self._globalstep_last_logged:
            self._averages.share(self.args.device)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does, with the averages since the last training log (see `hf_sam.trainer.logs`)."""
        if "loss" in logs:
            logs.update(self._averages.drain())
        super().log(logs, *args, **kwargs)


class SAMTrainer(SAMTrainerMixin, Trainer):
    """`transformers.Trainer`, sharpness-aware. See `SAMTrainerMixin`."""


class SAMSeq2SeqTrainer(SAMTrainerMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer`, sharpness-aware. See `SAMTrainerMixin`."""
