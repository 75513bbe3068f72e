# SPDX-License-Identifier: Apache-2.0
"""Check that the packages of the trackers are there that `--report_to` names, before anything is done."""

from __future__ import annotations

from typing import Any

from transformers.integrations import integration_utils

from hf_sam.cli.common.errors import UserError

_CHECKS = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}  # where the name of the check is another
_PACKAGES = {"azure_ml": "azureml-sdk", "comet_ml": "comet-ml", "flyte": "flytekit", "dagshub": "dagshub mlflow"}


def check_trackers(training: Any) -> None:
    """Refuse a tracker that is unknown, or whose package is missing.

    Raises:
        UserError: naming what has to be installed.
    """
    known = integration_utils.INTEGRATION_TO_CALLBACK
    for name in training.report_to:
        if name not in known:
            raise UserError(f"--report_to {name} is unknown. Known: {', '.join(known)}, all, none.")
        is_there = getattr(integration_utils, f"is_{_CHECKS.get(name, name)}_available", None)
        if is_there is not None and name != "kubeflow" and not is_there():
            raise UserError(f"--report_to {name} needs a package: pip install {_PACKAGES.get(name, name)}.")
