# SPDX-License-Identifier: Apache-2.0
"""What the lowest supported versions cannot do, with the plain Trainer either (`make test-floor`)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
import transformers
from packaging.version import Version


def is_older(package: str, than: str) -> bool:
    """Return whether a package is installed in an older version."""
    try:
        return Version(version(package)) < Version(than)
    except PackageNotFoundError:
        return False


compiles_models = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.7"),
    reason="compiled, models of transformers 5.5 return None on torch 2.6",
)
evaluates_in_notebooks = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.6"),
    reason="in a notebook of transformers 5.5 `evaluate` after `train` raises",
)
resumes_bert_plainly = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.6"),
    reason="the Trainer of transformers 5.5 does not find LayerNorm's weights in a checkpoint of BERT when it resumes",
)
