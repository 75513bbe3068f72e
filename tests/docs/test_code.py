# SPDX-License-Identifier: Apache-2.0
"""Does the code in the README and in the documentation run? Page by page, with names that a reader's script has."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest
from torch.optim import AdamW
from transformers import Trainer, TrainingArguments, default_data_collator

from hf_sam import VARIANTS, SAMConfig, SAMTrainer
from tests.docs.pages import code_in, pages
from tests.models import build

BLOCKS = {page: blocks for page, text in pages().items() if (blocks := list(code_in(text)))}
COUNTED = 20
"""At least so many blocks run: fewer, and the pattern that finds them has gone blind."""


def names_of_a_script(folder: Path) -> dict[str, Any]:
    """Return what the pages take for granted: a model, its data, arguments, a trainer, a loop's batch and optimizer."""
    model, data = build("bert")
    args = TrainingArguments(str(folder / "out"), max_steps=2, use_cpu=True, report_to="none", save_strategy="no")
    batch = default_data_collator(list(data)[:4])
    trainer = SAMTrainer(model, args, train_dataset=data, eval_dataset=data, sam_config=SAMConfig(rho=0.05))
    return {
        "__name__": "a_page", "model": model, "args": args, "train_dataset": data, "dataset": data,
        "data_collator": None, "batch": batch, "optimizer": AdamW(model.parameters(), lr=1e-3), "trainer": trainer,
        "TheirTrainer": Trainer,
    }  # fmt: skip


def imports_of(source: str) -> list[tuple[str, str]]:
    """Return module and name of everything that is imported from hf_sam."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return [(n.module, a.name) for n in nodes if n.module and n.module.startswith("hf_sam") for a in n.names]


def test_every_block_is_python_and_imports_what_there_is() -> None:
    for page, blocks in BLOCKS.items():
        for source, _ in blocks:
            for module, name in imports_of(source):
                assert hasattr(importlib.import_module(module), name), (page, module, name)


def test_the_blocks_are_found() -> None:
    assert sum(runs for blocks in BLOCKS.values() for _, runs in blocks) >= COUNTED
    assert list(code_in("a\n```python\nx\n```\n<!-- not run: why -->\n```python\ny\n```\n")) == [
        ("x\n", True),
        ("y\n", False),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("page", BLOCKS)
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "peft" in "".join(source for source, _ in BLOCKS[page]):
        pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(VARIANTS, "root", VARIANTS["sam"])  # a page registers one; it is taken out after the test
    names = names_of_a_script(tmp_path)
    for source, runs in BLOCKS[page]:
        if runs:
            exec(compile(source, page, "exec"), names)
