# SPDX-License-Identifier: Apache-2.0
"""What SAM keeps between two calls of `training_step`: one object on the trainer, `trainer._sam`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from hf_sam.config.sam_config import PLAIN, SAMConfig
from hf_sam.engines import Engine, engine_for
from hf_sam.parameters.choose import chosen
from hf_sam.radius.learning_rates import LearningRates
from hf_sam.step.gradient_mixing import UNMIXED, GradientMixing
from hf_sam.step.replay import ChangedState
from hf_sam.step_context import StepContext
from hf_sam.trainer.arguments import config_of
from hf_sam.trainer.logs import Averages, Sampler
from hf_sam.trainer.micro_batches import CHECKS, Window
from hf_sam.trainer.shared_arguments import FIELDS
from hf_sam.trainer.step_planner import StepPlanner, mean_over_processes
from hf_sam.variants import Regulariser
from hf_sam.vectors.stochastic_rounding import StochasticRounding, seed_from
from hf_sam.vectors.vectors import gradients

logger = logging.getLogger(__name__)


class RunState:
    """The state of one run. A trainer has one from its construction; each `train()` begins a new one.

    Attributes:
        config: the settings in force; those of plain training before the first step.
        planner: what a step does; None before the first step, and with sam_variant="none".
        engine: how two passes run on the model.
        mixing: what is made of the perturbed gradient.
        window: the optimizer step that is open; None between two.
        averages: what the logs are made of.
        sampler: which steps are measured.
        in_descent_pass: whether the second pass runs.
        counts_examples: whether the pass that runs is the one that counts each example.
        told: which warnings have been given.
        loading: the model and the checkpoint's folder while the Trainer loads weights; else None.
        begun: whether the Trainer's loop has begun.
        own_steps: optimizer steps that went through SAM's `training_step`.
        entered: whether a micro-batch has, since the optimizer last stepped.
        checked_step: the number of the last step that was seen to be SAM's; None before the first.
        learning_rates: of the run, as far as they are known at its beginning.
        in_train: whether `train()` runs: what runs between micro-batches is then known, or can be.
        known_loop: whether all of that is transformers' or ours; None while it was not asked.
    """

    def __init__(self, told: Iterable[str] = ()) -> None:
        self.config = SAMConfig(sam_variant=PLAIN)
        self.planner: StepPlanner | None = None
        self.engine: Engine | None = None
        self.mixing = UNMIXED
        self.window: Window | None = None
        self.averages, self.sampler = Averages(), Sampler()
        self.in_descent_pass, self.counts_examples = False, True
        self.told = set(told)
        self.loading: tuple[nn.Module, Path] | None = None
        self.begun, self.own_steps, self.entered = False, 0, False
        self.checked_step: int | None = None
        self.field_values: list[Any] = []  # of the arguments, when the settings were read
        self.candidates: list[Tensor] = []  # what may be trained
        self.optimized: list[int] | None = None  # ids of the optimizer's parameters when a step listed the candidates
        self.learning_rates: LearningRates | None = None
        self._trained: list[int] | None = None  # ids of the trained parameters when some of them were chosen
        self._chosen: set[int] = set()
        self._asked_about: list[Tensor] | None = None
        self._moved: list[Tensor] = []
        self.freezes: bool | None = None  # whether a pass may freeze what does not move; not known at first
        self.optimizer_checks = 0
        self.changed: ChangedState | None = None  # what passes change beside gradients
        self.checks_left = CHECKS  # of whether passes can be repeated
        self.in_train = False
        self.known_loop: bool | None = None

    def begin_attempt(self) -> None:
        """Start afresh where the Trainer begins again (auto_find_batch_size): what the last attempt knew is void.

        It is kept until then: an error that ends the run, or that the user's code survives, leaves it to be saved or
        to go on with.
        """
        if self.begun:
            vars(self).update(vars(RunState(self.told)), in_train=self.in_train)
        self.begun = True

    def forget_window(self) -> None:
        """Drop what belongs to one optimizer step, also where Ctrl-C has kept a `finally` from doing so."""
        if self.window is not None:
            self.window.undo()
        self.window, self.in_descent_pass, self.counts_examples = None, False, True

    def end(self) -> None:
        """Note that `train()` is over, however it ended."""
        if self.window is not None:
            self.window.undo()
        self.in_train = False

    def read_settings(self, trainer: Any) -> SAMConfig:
        """Take the settings out of the trainer's arguments, checked; a callback or a search may have changed them.

        Raises:
            ValueError: if one is out of range, or two do not go together.
            TypeError: if one is of the wrong type.
        """
        self.config = config_of(trainer.args)
        self.field_values = copy.deepcopy([getattr(trainer.args, name) for name in FIELDS])
        mixing = GradientMixing(self.config.sam_sharpness_weight, self.config.sam_renormalise)
        self.mixing = mixing if mixing.changes else UNMIXED
        if self.config.sam_variant != PLAIN:
            self.planner_for(trainer, self.config)
        return self.config

    def planner_for(self, trainer: Any, config: SAMConfig) -> StepPlanner:
        """Return the parts that `config` names; what they remember goes on where the settings change in a run."""
        if self.planner is None:
            self.planner, is_new = StepPlanner(config), True
        elif self.planner.config == config:
            return self.planner
        else:
            self.window, self._trained, self._asked_about = None, None, None
            is_new = self.planner.follow(config)
        if is_new:
            self.planner.variant.prepare(trainer.model.named_parameters())
            self.planner.variant.prepare_model(trainer.model)
            if isinstance(self.planner.variant, Regulariser):
                self.planner.variant.hide()
        return self.planner

    def list_parameters(self, trainer: Any, model: nn.Module) -> None:
        """List what may be trained, and find the model's engine: at the first step, and when one of them is another.

        The engine is new where auto_find_batch_size has wrapped the model again. The list holds the model's parameters,
        and those that only the optimizer knows (a loss with weights of its own).
        """
        if self.engine is None or self.engine.model is not model:
            self.engine = engine_for(model, trainer.optimizer, trainer.accelerator)
        known, self.candidates = self.candidates, self.engine.parameters(trainer.optimizer)
        if known and self.planner is not None and list(map(id, known)) != list(map(id, self.candidates)):
            self.planner.variant.prepare(trainer.model.named_parameters())  # some of them have come in the run

    def moved_parameters(self, trainer: Any, params: list[Tensor]) -> list[Tensor]:
        """Return those of the trained parameters that `sam_parameters` lets move; chosen anew where these are others.

        Args:
            trainer: with the model.
            params: the window's, the same object throughout an optimizer step.

        Raises:
            ValueError: if none is left to move.
        """
        if self.config.sam_parameters == "all":
            return params
        if params is not self._asked_about:
            if self._trained != [id(p) for p in params]:
                self._chosen = {id(p) for p in chosen(trainer.model, self.config.sam_parameters).values()}
                self._trained, self.freezes = [id(p) for p in params], None
            self._asked_about = params
            self._moved = [p for p in params if id(p) in self._chosen]
        return self._moved

    def context(self, trainer: Any) -> StepContext:
        """Return where in the run the coming optimizer step is."""
        if self.learning_rates is None:  # a step outside of `train()`
            self.learning_rates = LearningRates(trainer.optimizer, trainer.lr_scheduler)
        steps = trainer.state.max_steps
        peak_is_needed = self.planner is not None and self.planner.radius.needs_peak_lr
        lr, peak_lr = self.learning_rates.now_and_peak(trainer.optimizer, steps if peak_is_needed else 0)
        return StepContext(
            step=trainer.state.global_step,
            steps=steps,
            warmup_steps=self._warmup_steps(trainer, steps),
            lr=lr,
            peak_lr=peak_lr or 0.0,
            seed=trainer.args.seed,
            optimizer=trainer.optimizer,
            passes=float(trainer.state.epoch or 0.0),
        )

    def _warmup_steps(self, trainer: Any, steps: int) -> int:
        """Return when the learning rate has warmed up: as the arguments say, or as a scheduler of the user's own does.

        Only the Trainer's own scheduler follows the arguments; a subclass may have put it into another one.
        """
        from_arguments = trainer._created_lr_scheduler and type(trainer.lr_scheduler) is LambdaLR
        if self.learning_rates is not None and not from_arguments:
            own = self.learning_rates.warmup_steps(steps)
            if own is not None:
                return own
        return int(trainer.args.get_warmup_steps(steps))

    def check_optimizer(self, trainer: Any, params: list[Tensor]) -> None:
        """Let the variant refuse an optimizer before the run has cost anything, and when it first shows its state."""
        if self.planner is not None:
            self.planner.variant.check_optimizer(trainer.optimizer, params)
            self.optimizer_checks += 1

    def rounding(self, trainer: Any) -> StochasticRounding:
        """Return how to round a perturbation by chance; its place in the run is the seed, so a resume needs no state.

        Every process has the same seed: those that hold the same weights perturb them alike.
        """
        descents = self.window.descents if self.window is not None else 0
        return StochasticRounding(seed_from(trainer.args.seed, trainer.state.global_step, descents))

    def end_step(self, trainer: Any) -> None:
        """Let the variant and the radius do what they do once per optimizer step, after its last pass."""
        planner, window, engine = self.planner, self.window, self.engine
        if planner is None or window is None or engine is None:
            return
        if window.plan.passes == "reuse":
            reached = engine.as_shards([p for p in window.params if p.grad is not None])
            planner.variant.reuse_(reached, gradients(reached))
        elif isinstance(planner.variant, Regulariser):
            planner.variant.adjust_(window.plan.rho, window.plan.context)
        if planner.radius.needs_loss:
            seen = torch.stack([torch.stack(part).sum() for part in (window.losses, window.rises) if part])
            loss, *rise = mean_over_processes(seen) if trainer.args.world_size > 1 else seen
            planner.radius.observe(loss, rise[0] if rise else None)
