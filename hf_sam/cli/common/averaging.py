# SPDX-License-Identifier: Apache-2.0
"""Refuse `--average_weights` where the average could not be kept."""

from __future__ import annotations

from typing import Any

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.processes import splits_weights


def check_averaging(args: ScriptArguments, training: Any) -> None:
    """Refuse what does not go together.

    Raises:
        UserError: with the reason.
    """
    if args.average_weights is None:
        return
    if training.load_best_model_at_end:
        raise UserError(
            "--average_weights keeps a mean of many steps, and --early_stopping_patience or --load_best_model_at_end "
            "the weights of one: give one of them."
        )
    if splits_weights(training):
        raise UserError("--average_weights needs whole weights, and FSDP and DeepSpeed split them: leave it out.")
