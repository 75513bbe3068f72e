# SPDX-License-Identifier: Apache-2.0
"""A copied process is a process: its own variables, arguments, folder, output and end."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests import warm

pytestmark = pytest.mark.distributed

SCRIPT = """
import os, signal, sys, time
print(sys.argv[1:], os.getcwd(), __name__, "transformers" in sys.modules, os.environ.get("COLOUR"), flush=True)
how = sys.argv[int(os.environ.get("RANK", "0")) + 1]
if how == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "sleep":
    time.sleep(600)
if how == "raise":
    raise RuntimeError("no luck")
sys.exit(int(how))
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    (tmp_path / "script.py").write_text(SCRIPT)
    return str(tmp_path / "script.py")


@pytest.mark.parametrize(("how", "code"), [("0", 0), ("3", 3), ("raise", 1), ("kill", -9)])
def test_it_ends_as_python_does(how: str, code: int, script: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert warm.run(script, how, log=log, cwd=tmp_path, COLOUR="red") == code
    assert log.read_text().startswith(f"['{how}'] {tmp_path} __main__ True red\n")
    assert ("RuntimeError: no luck" in log.read_text()) == (how == "raise")
    assert "COLOUR" not in os.environ


def test_one_that_does_not_end_is_ended(script: str, tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="is still running"):
        warm.run(script, "sleep", log=tmp_path / "log", timeout=0.5)


def test_of_several_the_others_end_with_the_first_that_fails(script: str, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(AssertionError, match="no luck"):
        warm.run_together(2, script, "sleep", "raise", logs=tmp_path)
    assert time.monotonic() - started < 120
    warm.run_together(2, script, "0", "0", logs=tmp_path)
