# SPDX-License-Identifier: Apache-2.0
"""Packages that only some measurements need, imported when they are."""

from __future__ import annotations

import importlib
from typing import Any

EXTRA = 'pip install "hf-sam[robustness]"'


def needed(module: str) -> Any:
    """Return an imported module of the extra `robustness`.

    Raises:
        ImportError: one line that names the extra, if the package is not there.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:  # the package is there, and something else is missing
            raise
        raise ImportError(f"`hf_sam.robustness` needs {error.name} for this: {EXTRA}.", name=error.name) from None
