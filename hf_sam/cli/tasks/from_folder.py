# SPDX-License-Identifier: Apache-2.0
"""Build a task with the model of a folder, which may hold adapters alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.models import LOADING_ERRORS
from hf_sam.cli.tasks import TASKS


def build_from(folder: str, args: Any, training: Any) -> Any:
    """Return the task of the run with the model in `folder`, adapters merged into what they were trained on.

    Raises:
        UserError: if the model cannot be loaded.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        return TASKS[args.task].build(replace(args, model_name_or_path=folder), training)
    from peft import PeftConfig, PeftModel  # slow to import, and an optional package

    try:
        base = PeftConfig.from_pretrained(folder).base_model_name_or_path
        if not base:
            raise UserError(f"{folder} holds adapters of a model without a name: give the folder of a merged model.")
        task = TASKS[args.task].build(replace(args, model_name_or_path=base, lora_r=0), training)
        task.model = PeftModel.from_pretrained(task.model, folder).merge_and_unload()
    except LOADING_ERRORS as error:
        raise UserError(f"the adapters in {folder} cannot be loaded: {one_line(error)}") from error
    return task
