# SPDX-License-Identifier: Apache-2.0
"""The mixin that makes a Trainer sharpness-aware, without a training loop of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer, TrainingArguments
from transformers.utils import is_in_notebook

from hf_sam.config.sam_config import PLAIN, SAMConfig
from hf_sam.radius.learning_rates import LearningRates
from hf_sam.trainer.arguments import config_of, keeping_words, refuse_misplaced, resolve_config
from hf_sam.trainer.checkpoint import load_sam_state, save_sam_state
from hf_sam.trainer.interference import check_step
from hf_sam.trainer.logs import add_measurements
from hf_sam.trainer.micro_batches import COUNTERS
from hf_sam.trainer.model_card import signing_saved_card, write_card
from hf_sam.trainer.notebook_columns import NotebookColumns
from hf_sam.trainer.reload import load_renamed, loading
from hf_sam.trainer.run_state import RunState
from hf_sam.trainer.shared_arguments import as_plain, with_sam_fields
from hf_sam.trainer.training_step import training_step
from hf_sam.trainer.unsupported import refuse_order, refuse_request, refuse_trainer

# The mixin stands before a Trainer in the bases of a class; type checkers need to be told.
if TYPE_CHECKING:
    from transformers import Trainer as SomeTrainer
else:
    SomeTrainer = object


class SAMTrainerMixin(SomeTrainer):
    """Sharpness-aware steps for any `transformers.Trainer`: `class MyTrainer(SAMTrainerMixin, Seq2SeqTrainer)`.

    Each optimizer step runs forward and backward twice (Foret et al. 2021, algorithm 1), through the Trainer's own
    `training_step`, and leaves the gradient at the perturbed weights in `.grad`. Everything else is the Trainer's:
    clipping, the optimizer, the scheduler, logging, checkpoints. No code outside of the passes sees perturbed weights.

    What SAM keeps is in one attribute, `_sam`, made anew by each `train()`.

    Args:
        *args: of the Trainer.
        sam_config: SAM's settings beside any `TrainingArguments`. Leave it out when `args` are
            `SAMTrainingArguments`, which hold them already; `SAMConfig()` when neither is given.
        **kwargs: of the Trainer.

    Attributes:
        in_descent_pass: True while the second pass runs, and in a trial that `sam_parameters` makes before a run's
            first pass. A `compute_loss` that counts something counts only when it is False, or better, where
            `ascent_fraction` may be below 1, when `counts_examples` is True.
        counts_examples: True in the pass over all examples, once for each: the first one, or the second one where the
            first sees only a part of them.
        counters: names of attributes in which `compute_loss` counts without asking; the second pass leaves them as
            they were. TRL's by default; a subclass may name more.
        carried: names of attributes that the second pass finds as the first one left them, where others are as the
            first one found them: for what is computed once, in the first pass, for both.

    Raises:
        ValueError: if settings are given twice or out of range.
        NotImplementedError: for engines, optimizers and trainers that two passes would get wrong.
    """

    counters: tuple[str, ...] = COUNTERS
    carried: tuple[str, ...] = ()
    current_gradient_accumulation_steps = 1  # where `training_step` is called outside of `train()`

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_order(cls, SAMTrainerMixin)

    def __init__(self, *args: Any, sam_config: SAMConfig | None = None, **kwargs: Any) -> None:
        given = next((a for a in (*args, *kwargs.values()) if isinstance(a, TrainingArguments)), None)
        refuse_misplaced(super().__init__, args, kwargs)
        config = resolve_config(given, sam_config)
        active = config.sam_variant != PLAIN
        if active:
            refuse_request(type(self), (*args, *kwargs.values()))  # before the Trainer makes folders and repositories
        self._sam = RunState()
        super().__init__(*args, **kwargs)
        self.args: Any = with_sam_fields(self.args, config)
        if active:
            refuse_trainer(self, config)
            if is_in_notebook():
                self.add_callback(NotebookColumns(self))

    @property
    def sam_config(self) -> SAMConfig:
        """The settings in force, read from `args` so that a hyperparameter search can change them."""
        return config_of(self.args)

    @property
    def in_descent_pass(self) -> bool:
        """Whether the second pass runs."""
        return self._sam.in_descent_pass

    @property
    def counts_examples(self) -> bool:
        """Whether the pass that runs is the one that counts each example."""
        return self._sam.counts_examples

    def replayed_state(self) -> Iterable[Any]:
        """Return what else a pass changes: objects with `state_dict` and `load_state_dict`, none by default.

        To be overridden. The second pass finds them as the first one found them, and leaves them as that one did.
        Whatever a pass can reach from the model, the loss and the trainer's attributes is replayed without being named.
        """
        return ()

    # ------------------------------------------------------------------------------------------------------------------
    # Training
    # ------------------------------------------------------------------------------------------------------------------
    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does, from a fresh SAM state or the one in the checkpoint that is resumed."""
        config_of(self.args)  # settings that are out of range by now end the run before it has cost anything
        self._sam = RunState()
        self._sam.in_train = True
        try:
            return super().train(*args, **kwargs)
        finally:
            self._sam.end()

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Train once; auto_find_batch_size calls this again with a smaller batch."""
        self._sam.begin_attempt()
        try:
            return super()._inner_training_loop(*args, **kwargs)
        except BaseException:  # also one between two micro-batches
            self._sam.forget_window()
            raise

    def training_step(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run the passes that are due at this micro-batch.

        Returns:
            The clean loss of this micro-batch, L(w), as the Trainer scales it (promise 6).
        """
        return training_step(self, super().training_step, model, inputs, num_items_in_batch)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does, with what SAM did since the last training log; in the last one of a run, in all."""
        add_measurements(self._sam, logs)
        super().log(logs, *args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Let every process know the averages over all of them where the Trainer does so with its loss."""
        check_step(self, args[1] if len(args) > 1 else kwargs.get("grad_norm"))
        if self.control.should_log and self.state.global_step > self._globalstep_last_logged:
            self._share_averages()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._share_averages()
        return super()._finalize_training(*args, **kwargs)

    def _share_averages(self) -> None:
        if self.args.world_size > 1 and self._sam.config.sam_variant != PLAIN:
            self._sam.averages.share(self.args.device)

    def _hp_search_setup(self, trial: Any) -> None:
        with keeping_words(self.args):
            super()._hp_search_setup(trial)

    # ------------------------------------------------------------------------------------------------------------------
    # Checkpoints and cards
    # ------------------------------------------------------------------------------------------------------------------
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        save_sam_state(self, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self._sam.learning_rates = LearningRates(self.optimizer, self.lr_scheduler)
        super()._load_optimizer_and_scheduler(checkpoint)
        load_sam_state(self, checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *model: Any, **named: Any) -> None:
        with loading(self, resume_from_checkpoint, model[0] if model else named.get("model")):
            super()._load_from_checkpoint(resume_from_checkpoint, *model, **named)  # sentence-transformers': no model

    def _load_best_model(self) -> None:
        with loading(self, self.state.best_model_checkpoint):
            super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Warn as the Trainer does, of what is missing after renamed tensors have been loaded, too."""
        if self.sam_config.sam_variant != PLAIN and self._sam.loading is not None:
            load_result = load_renamed(*self._sam.loading, load_result)
        super()._issue_warnings_after_load(load_result)

    def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        save, own = super()._save, self.args
        self.args = as_plain(own)  # training_args.bin is to load where hf_sam is not installed
        try:
            signing_saved_card(self, output_dir, lambda: save(output_dir, *args, **kwargs))
        finally:
            self.args = own

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the Trainer's model card with the tag, SAM's settings and the citation."""
        write_card(self, super().create_model_card, *args, **kwargs)


class SAMTrainer(SAMTrainerMixin, Trainer):
    """`transformers.Trainer`, sharpness-aware. See `SAMTrainerMixin`."""


class SAMSeq2SeqTrainer(SAMTrainerMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer`, sharpness-aware. See `SAMTrainerMixin`."""
