# SPDX-License-Identifier: Apache-2.0
"""What is left of the model of one run after rounding, pruning, and on corrupted inputs?"""

from __future__ import annotations

from typing import Any

from hf_sam.cli.common.robustness import evaluation_data
from hf_sam.cli.tasks.from_folder import build_from
from hf_sam.robustness import RobustnessAnalyzer

SEED = 0
"""Of what is random in the conditions, and of the split: the same for all runs that are compared."""


def kept_scores(folder: str, args: Any, training: Any, wanted: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Measure the model in `folder` on the run's evaluation data.

    Args:
        folder: of the model.
        args, training: of the run.
        wanted: conditions (see `hf_sam.robustness.plan.planned`); "calibration" is the share of the evaluation data
            that a temperature is fitted on, and the rest is measured.

    Returns:
        Scores by condition and metric.
    """
    conditions = dict(wanted)
    calibration = str(conditions.pop("calibration")) if "calibration" in conditions else None
    training.do_train, training.do_eval, training.do_predict = False, True, False
    task = build_from(folder, args, training)
    data, held_out, _ = evaluation_data(task, calibration)
    one = RobustnessAnalyzer(
        task.model, data, data_collator=task.data_collator, batch_size=training.per_device_eval_batch_size,
        calibration=held_out, processing_class=task.processing_class, seed=SEED,
    )  # fmt: skip
    return {each.condition.name: each.scores for each in one.report(**conditions).measurements.values()}
