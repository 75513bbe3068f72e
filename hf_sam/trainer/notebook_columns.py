# SPDX-License-Identifier: Apache-2.0
"""Show what SAM measures in the table that the Trainer draws in a notebook."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

SHOWN, HIDDEN = ("sam/", "sharpness/"), "sam/run_"
"""What the logs that are shown begin with; those of the whole run have no line in the table."""


class NotebookColumns(TrainerCallback):
    """Add a column for each `sam/...` and `sharpness/...` that is logged to the Trainer's table in a notebook.

    That table shows the losses and the metrics of an evaluation, and leaves out what else is logged. A trainer with
    `SAMTrainerMixin` that is made in a notebook has this callback already. Without a table there is nothing to add to.

    Args:
        trainer: that it is added to; any `transformers.Trainer`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._latest: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget the run before."""
        del args, state, control, kwargs
        self._latest = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write into the line of this step; with evaluations, a line is one of them, and waits for it."""
        del control, kwargs
        found = {name: value for name, value in (logs or {}).items() if name.startswith(SHOWN)}
        found = {name: value for name, value in found.items() if not name.startswith(HIDDEN)}
        self._latest |= found
        if found and args.eval_strategy == "no":
            self._write(state, found)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what was logged last into the line of this evaluation."""
        del args, control, kwargs
        self._write(state, self._latest)

    def _write(self, state: Any, values: dict[str, float]) -> None:
        trackers = (getattr(each, "training_tracker", None) for each in self.trainer.callback_handler.callbacks)
        for tracker in trackers:
            if tracker is not None and tracker.inner_table:
                head, *lines = tracker.inner_table
                at = int(state.epoch or 0) if head[0] == "Epoch" else state.global_step
                # The first line of a table must have a value for each of its columns.
                rest = {} if lines else dict.fromkeys(head, "No log")
                tracker.write_line({**rest, head[0]: at, **values})
