# SPDX-License-Identifier: Apache-2.0
"""Which of these tests wait for a change elsewhere in the package? This file goes when it has landed."""

from __future__ import annotations

import pytest

WAITING = {
    "softmax": "parameters that only the optimizer knows are not perturbed yet",
    "contrastive tension": "parameters that only the optimizer knows are not perturbed yet",
    "several_data_sets": "parameters that only the optimizer knows are not perturbed yet",
    "test_custom.py": "parameters that only the optimizer knows are not perturbed yet",
    "test_sentence_transformers.py::test_a_resumed": "_load_from_checkpoint is called with an argument too many",
    "best_model_comes_back": "_load_from_checkpoint is called with an argument too many",
    "test_cards.py": "cards written beside the weights are not signed yet",
    "refused_before_it_is_built": "refusals do not know every trainer yet",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect failures where a change is waited for."""
    for item in items:
        for part, reason in WAITING.items():
            if "tests/clients/" in item.nodeid and part in item.nodeid:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=False))
