# SPDX-License-Identifier: Apache-2.0
"""What belongs to one run of a Trainer: the parts in force, the open window, what was measured?"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from torch import Tensor, nn

from hf_sam.config.sam_config import SAMConfig
from hf_sam.engines.deepspeed import parameters_of
from hf_sam.engines.gradient_sync import GradientSync
from hf_sam.parameters.choose import chosen
from hf_sam.radius.auto import PASSES, PLAIN_PASSES
from hf_sam.radius.schedules import AUTO
from hf_sam.step_context import StepContext
from hf_sam.trainer.logs import Averages, Sampler
from hf_sam.trainer.micro_batches import Window
from hf_sam.trainer.step_planner import StepPlan, StepPlanner
from hf_sam.variants import Length
from hf_sam.vectors.stochastic_rounding import StochasticRounding, seed_from

logger = logging.getLogger(__name__)

NOTHING_PERTURBED = (
    "`SAMConfig(rho='auto')` perturbs from the end of epoch %d, with its whole length from that of epoch %d; "
    "this run has %s and is plain training. Give a number, such as rho=0.05, to perturb from the start."
)
NOBODY_KNOWS = "data of unknown length, which are an epoch until they are repeated,"

# The mixin stands before a Trainer in the bases of a class; type checkers need to be told.
if TYPE_CHECKING:
    from transformers import Trainer as SomeTrainer
else:
    SomeTrainer = object


class BelongsToARun(SomeTrainer):
    """A mixin for a Trainer that keeps what one call of `train` needs."""

    in_descent_pass: bool = False
    counts_examples: bool = True

    @property
    def sam_config(self) -> SAMConfig:
        """The settings in force; the trainer's."""
        raise NotImplementedError

    def _forget_run(self) -> None:
        """Drop what belongs to one run: what the parts remember, the open window, the averages."""
        self._policy: StepPlanner | None = None
        self._sync: GradientSync | None = None
        self._chosen: set[int] | None = None
        self._averages, self._sampler = Averages(), Sampler()
        self._told_realised_norm = self._told_portion = False
        self._optimizer_checks = 0
        self._forget_window()

    def _forget_window(self) -> None:
        """Drop what belongs to one optimizer step."""
        self._plan: StepPlan | None = None
        self._window: Window | None = None
        self._descents = 0
        self._ends_window = False  # whether this is its last micro-batch; the engines' own flag changes inside a pass
        self._losses: list[Tensor] = []  # of the micro-batches so far
        self._rises: list[Tensor] = []  # of the descents so far
        self.in_descent_pass, self.counts_examples = False, True  # Ctrl-C may land beside the `finally` that does it

    def _sam_policy(self, config: SAMConfig) -> StepPlanner:
        """Return the parts that `config` names, made at the first step; a callback may change settings later."""
        if self._policy is None:
            self._policy, is_new = StepPlanner(config), True
        elif self._policy.config == config:
            return self._policy
        else:
            self._plan, self._chosen = None, None
            is_new = self._policy.follow(config)
        if is_new:
            self._warn_of_few_epochs(config)
            self._policy.direction.prepare(self.model.named_parameters())
            self._policy.direction.prepare_model(self.model)
        return self._policy

    def _warn_of_few_epochs(self, config: SAMConfig) -> None:
        epochs = self.state.num_train_epochs
        if config.rho == AUTO and (1 <= epochs <= PLAIN_PASSES or epochs == sys.maxsize):
            has = NOBODY_KNOWS if epochs == sys.maxsize else epochs
            logger.warning(NOTHING_PERTURBED, PLAIN_PASSES, PASSES, has)

    def _step_context(self) -> StepContext:
        """Return where in the run the coming optimizer step is."""
        groups = getattr(self.optimizer, "param_groups", None) or [{}]
        lr = float(groups[0].get("lr") or 0.0)
        steps = self.state.max_steps
        return StepContext(
            step=self.state.global_step,
            steps=steps,
            warmup_steps=self.args.get_warmup_steps(steps),
            lr=lr,
            peak_lr=float(groups[0].get("initial_lr") or lr),
            seed=self.args.seed,
            optimizer=self.optimizer,
            passes=float(self.state.epoch or 0.0),
        )

    def _gradient_sync(self, model: nn.Module) -> GradientSync:
        """Return the switches of the model's engine."""
        if self._sync is None or self._sync.model is not model:  # auto_find_batch_size wraps the model again
            self._sync = GradientSync(model, self.accelerator.gradient_state)
        return self._sync

    def _sam_parameters(self, model: nn.Module) -> list[Tensor]:
        """Return what is trained: the model, and what only the optimizer knows (a loss with weights of its own)."""
        every = parameters_of(model, self.optimizer)
        return list({id(p): p for p in every if p.requires_grad}.values())

    def _sam_chosen(self, config: SAMConfig, params: list[Tensor]) -> list[Tensor]:
        """Return those of the trained parameters that the filter lets move."""
        if config.sam_parameters == "all":
            return params
        if self._chosen is None:
            self._chosen = {id(p) for p in chosen(self.model, config.sam_parameters).values()}
        return [p for p in params if id(p) in self._chosen]

    def _check_optimizer(self, model: nn.Module, policy: StepPlanner) -> None:
        """Let the direction refuse an optimizer before the run has cost anything, and when it first shows its state."""
        if self._optimizer_checks < 2:
            policy.direction.check_optimizer(self.optimizer, self._sam_parameters(model))
            self._optimizer_checks += 1

    def _loss_scale(self, policy: StepPlanner) -> Length:
        """Return what gradients are multiplied by now; asked for only where it matters, as it waits for the device."""
        scaler = getattr(self.accelerator, "scaler", None)
        return scaler.get_scale() if scaler is not None and policy.needs_loss_scale else 1.0

    def _sam_rounding(self, config: SAMConfig) -> StochasticRounding | None:
        """Return how to round this descent; seeded by where it is in the run, so that a resume needs no state for it.

        Every process has the same seed: those that hold the same weights perturb them alike.
        """
        if config.sam_rounding != "stochastic":
            return None
        return StochasticRounding(seed_from(self.args.seed, self.state.global_step, self._descents))
