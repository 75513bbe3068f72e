# SPDX-License-Identifier: Apache-2.0
"""How does a Trainer become sharpness-aware without a training loop of its own?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer, TrainingArguments

from hf_sam.arguments import config_of, resolve_config, with_sam_fields
from hf_sam.config import PLAIN, SAMConfig, variant_of
from hf_sam.counters import COUNTERS, counted_once
from hf_sam.deepspeed import descend_in, parameters_of, step_deferred
from hf_sam.metrics import Averages
from hf_sam.model_card import WritesModelCard
from hf_sam.refusals import refuse_request, refuse_trainer
from hf_sam.reload import ReloadsRenamedTensors
from hf_sam.report import Report
from hf_sam.resume import ResumesSAM
from hf_sam.rounding import StochasticRounding, seed_from
from hf_sam.shards import held
from hf_sam.step import set_gradients
from hf_sam.sync import GradientSync
from hf_sam.variants import Variant
from hf_sam.window import MicroBatch, Window

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


class SAMTrainerMixin(ResumesSAM, WritesModelCard, ReloadsRenamedTensors):
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
            is False.
        counters: names of attributes in which `compute_loss` counts without asking; the second pass leaves them as
            they were. TRL's by default; a subclass may name more.

    Raises:
        ValueError: if settings are given twice or out of range.
        NotImplementedError: for engines, optimizers and trainers that two passes would get wrong.
    """

    in_descent_pass: bool = False
    counters: tuple[str, ...] = COUNTERS

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

    def _forget_run(self) -> None:
        """Drop what belongs to one run: the direction's state, the open window, the averages."""
        self._direction: Variant | None = None
        self._window: Window | None = None
        self._sync: GradientSync | None = None
        self._averages = Averages()
        self._told_realised_norm = False
        self._descents = 0

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
            # A smaller batch may be tried next (auto_find_batch_size): it must not replay these micro-batches.
            self._window, self._descents = None, 0
            self.in_descent_pass = False  # Ctrl-C may land beside the `finally` that does it
            raise

    def _sam_training_step(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None, config: SAMConfig
    ) -> Tensor:
        alone = config.sam_scope == "micro_batch"
        if self._sync is None or self._sync.model is not model:  # auto_find_batch_size wraps the model again
            self._sync = GradientSync(model, self.accelerator.gradient_state)
        sync = self._sync
        window = self._window = self._window or Window(model, sync=sync)
        params = self._sam_parameters(model)
        earlier = [p.grad for p in params] if alone else None
        ends_window = self.accelerator.sync_gradients
        # Shards of one micro-batch's gradient exist only after a reduction.
        with sync.all_together() if alone and sync.sharded else nullcontext():
            if alone:
                set_gradients(params, [None] * len(params))
            count = self.current_gradient_accumulation_steps
            micro_batch = MicroBatch(inputs, num_items_in_batch, count, window.random_state(), sync.mode())
            with nullcontext() if config.sam_scope == "batch" else sync.each_process_alone():
                micro_batch.clean_loss = self._plain_step(model, micro_batch)
            window.micro_batches.append(micro_batch)
            if alone or ends_window:
                self._descend(model, window, held(params, model), earlier, config, ends_window)
                self._window = None
        return micro_batch.clean_loss

    def _sam_parameters(self, model: nn.Module) -> list[Tensor]:
        """Return what is trained: the model, and what only the optimizer knows (a loss with weights of its own)."""
        every = parameters_of(model, self.optimizer)
        return list({id(p): p for p in every if p.requires_grad}.values())

    def _plain_step(self, model: nn.Module, micro_batch: MicroBatch) -> Tensor:
        """Run the Trainer's own forward and backward on one micro-batch."""
        self.current_gradient_accumulation_steps = micro_batch.accumulation_steps
        inputs = micro_batch.fresh_inputs()
        loss: Tensor = super().training_step(model, inputs, micro_batch.num_items_in_batch)
        return loss

    def _descend(
        self,
        model: nn.Module,
        window: Window,
        params: list[Tensor],
        earlier: list[Tensor | None] | None,
        config: SAMConfig,
        ends_window: bool,
    ) -> None:
        """Climb, run the window again at w + epsilon, come back, and take the measurements."""
        rises: list[Tensor] = []
        count = self.current_gradient_accumulation_steps

        def evaluate() -> None:
            self.in_descent_pass = True
            try:
                with counted_once(self, self.counters):
                    rises.append(window.replay(lambda micro_batch: self._plain_step(model, micro_batch)))
            finally:
                self.in_descent_pass = False
                self.current_gradient_accumulation_steps = count

        comparable = not (earlier and window.sync.averages and any(grad is not None for grad in earlier))
        report = descend_in(
            model,
            evaluate,
            params,
            self._sam_direction(config),
            rho=config.rho,
            onto=earlier,
            comparable=comparable,
            rounding=self._sam_rounding(config),
        )
        self._descents = 0 if ends_window else self._descents + 1
        self._averages.add(report, rises[0], config.rho, ends_window=ends_window)
        self._tell_realised_norm(report, config)

    def _sam_direction(self, config: SAMConfig) -> Variant:
        if self._direction is None:
            self._direction = variant_of(config)
            self._direction.prepare(self.model.named_parameters())
        return self._direction

    def _sam_rounding(self, config: SAMConfig) -> StochasticRounding | None:
        """Return how to round this descent; seeded by where it is in the run, so that a resume needs no state for it.

        Every process has the same seed: those that hold the same weights perturb them alike.
        """
        if config.sam_rounding != "stochastic":
            return None
        return StochasticRounding(seed_from(self.args.seed, self.state.global_step, self._descents))

    def _tell_realised_norm(self, report: Report, config: SAMConfig) -> None:
        """Say once how much of epsilon survives in 16-bit weights; the only place that waits for the device."""
        if report.asked_norm is None or self._told_realised_norm or not report.usable:
            return
        asked, realised = report.asked_norm.item(), report.epsilon_norm.item()
        if not asked > 0:
            return
        self._told_realised_norm = True
        if config.sam_rounding == "nearest":
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
        """Log as the Trainer does, with the averages since the last training log (see `hf_sam.metrics`)."""
        if "loss" in logs:
            logs.update(self._averages.drain())
        super().log(logs, *args, **kwargs)


class SAMTrainer(SAMTrainerMixin, Trainer):
    """`transformers.Trainer`, sharpness-aware. See `SAMTrainerMixin`."""


class SAMSeq2SeqTrainer(SAMTrainerMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer`, sharpness-aware. See `SAMTrainerMixin`."""
