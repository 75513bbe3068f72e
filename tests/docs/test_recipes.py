# SPDX-License-Identifier: Apache-2.0
"""Are the recipes in the documentation recipes?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("rich")

from hf_sam.cli.common.parsing import parse
from hf_sam.cli.tasks import TASKS
from tests.docs.pages import DOCS

RECIPES = re.findall(r"```yaml\n(.*?)```", (DOCS / "scripts.md").read_text(encoding="utf-8"), re.DOTALL)


def test_they_are_read_as_they_stand(tmp_path: Path) -> None:
    assert RECIPES
    for number, text in enumerate(RECIPES):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text, encoding="utf-8")
        args, training = parse([str(path), "--use_cpu"], {name: entry.defaults for name, entry in TASKS.items()})
        assert args.task in TASKS
        assert training.preset is None or f"preset: {training.preset}" in text
