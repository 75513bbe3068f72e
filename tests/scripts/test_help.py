# SPDX-License-Identifier: Apache-2.0
"""Is `--help` in an order that a reader can use, and is every argument in it once?"""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from hf_sam import SAMConfig
from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.help_text import SAM, TRAINER, group_names
from hf_sam.cli.common.parsing import make_parser
from hf_sam.cli.finetune import main


@pytest.fixture(scope="module")
def text() -> str:
    import contextlib
    import io

    written = io.StringIO()
    with contextlib.redirect_stdout(written), pytest.raises(SystemExit):
        main(["--help"])
    return written.getvalue()


def test_the_task_comes_first_then_sam_then_the_trainer(text: str) -> None:
    titles = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert titles == ["options", "task", "model", "data", "adapters", "run", SAM, TRAINER]
    before, _, after = text.partition(f"\n{SAM}:\n")
    assert before.count("\n") < 200
    sam, _, trainer = after.partition(f"\n{TRAINER}:\n")
    assert re.findall(r"^  --(\w+)", sam, re.MULTILINE) == ["preset", *(each.name for each in fields(SAMConfig))]
    assert "--learning_rate" in trainer
    assert "--rho" not in trainer


def test_every_argument_is_there_once(text: str) -> None:
    shown = re.findall(r"^  (?:-h, )?--(\w+)", text, re.MULTILINE)
    known = [next(name for name in a.option_strings if name.startswith("--")) for a in make_parser()._actions]
    assert sorted(shown) == sorted(name[2:] for name in known)


def test_every_argument_of_ours_is_in_a_group() -> None:
    placed = [name for names in group_names().values() for name in names]
    ours = [each.name for each in (*fields(ScriptArguments), *fields(SAMConfig))]
    assert sorted(placed) == sorted([*ours, "preset"])


def test_a_default_is_said_where_it_says_something(text: str) -> None:
    assert "(default: None)" not in text
    assert "(default: False)" not in text
    assert re.search(r"--max_length LENGTH\s+Cut texts to so many tokens\. \(default: 128\)", text)
    assert "--trust_remote_code [True|False]" in text
