# SPDX-License-Identifier: Apache-2.0
"""Programs that are timed in turns."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts.benchmarks.common.relay import in_turns

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from scripts.benchmarks.common.relay import Turns
hours = iter(range(100))
turns = Turns(lambda: next(hours) ** 2)
print("a library says something")
for step in range({steps}):
    with open({log!r}, "a") as log:
        log.write({name!r})
    turns.end_step(step / 2)
"""


def program(name: str, log: Path, steps: int = 4) -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(root=str(ROOT), steps=steps, log=str(log), name=name)]


def test_steps_are_taken_in_turns_back_and_forth_and_waiting_does_not_count(tmp_path: Path) -> None:
    log = tmp_path / "log"
    found = in_turns({name: program(name, log) for name in "ab"}, 4)
    assert log.read_text() == "ab" + "ab" + "ba" + "ab"
    # The clock is read at both ends of a step: 2^2 and 3^2, 4^2 and 5^2, ...; a wait is between.
    expected = [[5.0, 0.5], [9.0, 1.0], [13.0, 1.5]]
    assert found == {"a": expected, "b": expected}


def test_a_program_that_ends_too_early_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(RuntimeError, match="b ended before its last step, with status 0"):
        in_turns({"a": program("a", log), "b": program("b", log, steps=2)}, 4)
