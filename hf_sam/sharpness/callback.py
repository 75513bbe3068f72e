# SPDX-License-Identifier: Apache-2.0
"""A callback that logs how the flatness changes during training."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from transformers import TrainerCallback

from hf_sam._checks import check_count, check_number, checked_choice
from hf_sam.sharpness.analyzer import SharpnessAnalyzer
from hf_sam.sharpness.losses import TrainerLoss
from hf_sam.sharpness.measures import MEASURES
from hf_sam.sharpness.terms import NoMean

logger = logging.getLogger(__name__)

GIVEN_UP = "`SharpnessCallback` logs no sharpness/%s in this run, which goes on: %s: %s"
OF_BATCHES = (
    "`SharpnessCallback` measures the mean of the losses of batches of %d examples: the loss of %d is not put together "
    "from those of its parts. Another batch size (batch_size=...) is another quantity."
)

LOGGED = {"sam" if name == "sam_sharpness" else name: measure for name, measure in MEASURES.items()}
"""What `SharpnessCallback` can log, each as `sharpness/...`."""


class SharpnessCallback(TrainerCallback):
    """Log flatness of the trainer's loss during training, on the same examples each time; nothing of the run changes.

    `trainer.add_callback(SharpnessCallback(trainer, every=100))` logs `sharpness/lambda_max` and `sharpness/sam` before
    the first optimizer step and after every hundredth. The weights, the optimizer, the random streams and so the losses
    of the run are the same bits with it and without it. With one gradient over the examples as the unit, lambda_max
    costs about 30, sam 2, gradient_norm 1.

    The loss is that of `trainer.evaluate()`: `compute_loss` with its class weights, label smoothing or
    `compute_loss_func`. Where it is no mean over terms that could be counted, it is the mean of the batches' losses, as
    in `evaluate`. What cannot be measured is left out after one warning; it never ends the run.

    Args:
        trainer: that it is added to; any `transformers.Trainer`.
        every: optimizer steps, >= 1.
        dataset: the examples; the trainer's evaluation set without one.
        measures: of "loss", "gradient_norm", "lambda_max", "sam", "worst_case", "trace".
        rho: of the rises "sam" and "worst_case".
        max_examples: at most so many, a seeded choice.
        analyzer: further arguments of `SharpnessAnalyzer`; the batch size is that of `evaluate`, at most 32, without.

    Raises:
        ValueError: if an argument is out of range, or there is no data set.
    """

    def __init__(
        self,
        trainer: Any,
        every: int = 500,
        dataset: Iterable[Any] | None = None,
        measures: Iterable[str] = ("lambda_max", "sam"),
        rho: float = 0.05,
        max_examples: int = 128,
        **analyzer: Any,
    ) -> None:
        check_count("SharpnessCallback", "every", every)
        check_number("SharpnessCallback", "rho", rho, least=0)
        self.measures = [checked_choice("SharpnessCallback(measures=...)", m, tuple(LOGGED)) for m in measures]
        self.dataset = dataset if dataset is not None else trainer.eval_dataset
        if self.dataset is None or isinstance(self.dataset, dict):
            raise ValueError(
                "`SharpnessCallback(dataset=...)` must be given where the trainer has no single eval_dataset."
            )
        self.trainer, self.every, self.rho = trainer, every, rho
        self.analyzer = {
            "max_examples": max_examples,
            "data_collator": trainer.data_collator,
            "batch_size": min(32, max(1, trainer.args.eval_batch_size)),
            "loss": TrainerLoss(trainer),
            **analyzer,
        }
        self._given_up: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log where training starts, unless it is resumed."""
        del args, kwargs
        if state.global_step == 0:
            self._log(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log at every `every`-th step."""
        del args, kwargs
        if state.global_step % self.every == 0:
            self._log(control)

    def _log(self, control: Any) -> None:
        values: dict[str, float] = {}
        for name in self.measures:
            if name not in self._given_up:
                try:
                    values |= self.measure([name])
                except Exception as error:  # noqa: BLE001 (whatever it is, the run is worth more than the number)
                    self._given_up.add(name)
                    logger.warning(GIVEN_UP, name, type(error).__name__, " ".join(str(error).split()))
        if values:
            wanted = control.should_log
            self.trainer.log(values)
            control.should_log = wanted  # or this log would stand in for the Trainer's own

    def measure(self, measures: Iterable[str] | None = None) -> dict[str, float]:
        """Return the values at the trainer's weights as they are now; of all measures, or of some."""
        one = SharpnessAnalyzer(self.trainer.model, self.dataset, **self.analyzer)
        wanted = list(self.measures if measures is None else measures)
        try:
            return {f"sharpness/{name}": LOGGED[name](one.loss_function, self.rho, one.seed) for name in wanted}
        except NoMean as error:
            logger.warning(OF_BATCHES, one.examples.batch_size, error.rows)
            self.analyzer["unit"] = "batch"
            return self.measure(wanted)
