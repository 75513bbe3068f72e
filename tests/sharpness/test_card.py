# SPDX-License-Identifier: Apache-2.0
"""Does the model card get what was measured, once, and keep the rest?"""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_sam.sharpness import SharpnessAnalyzer, add_to_card
from hf_sam.sharpness.card import HEADING
from tests.sharpness.models import build

CARD = "---\ntags:\n- a\n---\n\n# A model\n\nText.\n"


def test_the_section_is_added_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD, encoding="utf-8")
    for examples in (4, 9):
        report = SharpnessAnalyzer(*build("bert"), max_examples=examples).report(k=1, products=6, steps=2)
        add_to_card(tmp_path, report)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.startswith(CARD.rstrip())
    assert text.count(HEADING) == 1
    assert "on 9 examples, 816 parameters" in text
    assert f"| {report['lambda_max']:.4g} |" in text
    assert "sam(rho=0.05, m=9)" in text
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_no_card_is_said(tmp_path: Path) -> None:
    report = SharpnessAnalyzer(*build("bert")).report(k=1, products=6, steps=1)
    with pytest.raises(FileNotFoundError, match=r"README\.md"):
        add_to_card(tmp_path, report)
