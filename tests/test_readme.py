# SPDX-License-Identifier: Apache-2.0
"""Do the files and targets that tests/README.md names exist, and is every test in exactly one target?"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

TESTS = Path(__file__).parent
README = (TESTS / "README.md").read_text(encoding="utf-8")
MAKEFILE = (TESTS.parent / "Makefile").read_text(encoding="utf-8")
MARKERS = ("slow", "data", "distributed", "gpu", "everything")


def named(text: str) -> list[str]:
    """Return the files and folders of tests/ that a text names in backticks."""
    return [name for name in re.findall(r"`([\w/]+(?:\.py|/))`", text) if not name.startswith("hf_sam/")]


def test_every_file_and_folder_named_exists() -> None:
    assert len(named(README)) > 40
    assert not [
        name for name in named(README) if not (TESTS.parent / name if "tests/" in name else TESTS / name).exists()
    ]


def test_a_name_that_does_not_exist_is_found() -> None:
    assert named("`promises/test_gone.py`, `gone/`, `SAMTrainer` and `hf_sam/gone.py`") == [
        "promises/test_gone.py",
        "gone/",
    ]


def test_every_promise_has_its_line() -> None:
    lines = re.findall(r"^\| (\d+) .* \| (.*) \|$", README, re.MULTILINE)
    assert [int(number) for number, _ in lines] == list(range(1, 14))
    assert all(named(files) for _, files in lines)


def test_every_target_named_exists() -> None:
    targets = set(re.findall(r"`make ([\w-]+)", README))
    assert {"test", "test-slow", "test-distributed", "test-everything"} <= targets
    assert targets <= set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))


def test_every_test_is_in_exactly_one_part_whatever_its_markers() -> None:
    chosen = dict(re.findall(r"^(FAST|SLOW|DISTRIBUTED|EVERYTHING) +:= (.*)$", MAKEFILE, re.MULTILINE))
    assert len(chosen) == 4
    for given in itertools.product([False, True], repeat=len(MARKERS)):
        marks = dict(zip(MARKERS, given, strict=True))
        parts = [part for part, expression in chosen.items() if eval(expression, {}, marks)]
        assert len(parts) == 1, (marks, parts)


def test_deepspeed_is_installed_only_where_its_tests_run() -> None:
    needed = dict(re.findall(r"^([\w-]+): \$\((STAMP\w*)\)", MAKEFILE, re.MULTILINE))
    extras = dict(
        re.findall(r"^\$\((STAMP\w*)\):.*\n\t\$\(call install,.*,(?:\$\(strip )?([\w,]+?)\)", MAKEFILE, re.MULTILINE)
    )
    with_it = {target for target, stamp in needed.items() if "deepspeed" in extras[stamp].split(",")}
    assert with_it == {"test-distributed", "test-everything"}
    assert {"setup", "run", "test", "lint"} <= {target for target, stamp in needed.items() if stamp == "STAMP"}
