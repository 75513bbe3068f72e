# SPDX-License-Identifier: Apache-2.0
"""How does the flatness change during training?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import TrainerCallback

from hf_sam._checks import check_count, check_number, checked_choice
from hf_sam.sharpness.analyzer import SharpnessAnalyzer

LOGGED = ("loss", "gradient_norm", "lambda_max", "sam", "worst_case", "trace")
"""What `SharpnessCallback` can log, each as `sharpness/...`."""


class SharpnessCallback(TrainerCallback):
    """Log flatness during training, on the same examples each time; nothing of the run changes.

    `trainer.add_callback(SharpnessCallback(trainer, every=100))` logs `sharpness/lambda_max` and `sharpness/sam` before
    the first optimizer step and after every hundredth. The weights, the optimizer, the random streams and so the losses
    of the run are the same bits with it and without it. With one gradient over the examples as the unit, lambda_max
    costs about 30, sam 2, gradient_norm 1.

    Args:
        trainer: that it is added to; any `transformers.Trainer`.
        every: optimizer steps, >= 1.
        dataset: the probe; the trainer's evaluation set without one.
        measures: of "loss", "gradient_norm", "lambda_max", "sam", "worst_case", "trace".
        rho: of the rises "sam" and "worst_case".
        max_examples: of the probe.
        analyzer: further arguments of `SharpnessAnalyzer`.

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
        self.measures = [checked_choice("SharpnessCallback(measures=...)", m, LOGGED) for m in measures]
        self.dataset = dataset if dataset is not None else trainer.eval_dataset
        if self.dataset is None or isinstance(self.dataset, dict):
            raise ValueError(
                "`SharpnessCallback(dataset=...)` must be given where the trainer has no single eval_dataset."
            )
        self.trainer, self.every, self.rho = trainer, every, rho
        self.analyzer = {"max_examples": max_examples, "data_collator": trainer.data_collator, **analyzer}

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
        wanted = control.should_log
        self.trainer.log(self.measure())
        control.should_log = wanted  # a log takes the Trainer's own off the list

    def measure(self) -> dict[str, float]:
        """Return the values at the trainer's weights as they are now."""
        one = SharpnessAnalyzer(self.trainer.model, self.dataset, **self.analyzer)
        found: dict[str, float] = {}
        for name in self.measures:
            found[f"sharpness/{name}"] = self._value(one, name)
        return found

    def _value(self, one: SharpnessAnalyzer, name: str) -> float:
        if name == "loss":
            return one.loss()
        if name == "gradient_norm":
            return float(one.problem.gradient()[1].norm())
        if name == "lambda_max":
            return one.top_eigenvalues().values[0]
        if name == "trace":
            return one.trace().value
        return (one.sam_sharpness(self.rho) if name == "sam" else one.worst_case(self.rho)).value
