# SPDX-License-Identifier: Apache-2.0
"""Do warnings carry the package's name, once, and only where the program has not said how to show them?"""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from hf_sam.trainer.messages import LastResort, name_the_package

RECORD = logging.LogRecord("hf_sam.trainer.logs", logging.WARNING, __file__, 1, "rho is %g", (7.0,), None)


@pytest.fixture
def handler() -> LastResort:
    logger = logging.getLogger("a_package")
    name_the_package("a_package")
    name_the_package("a_package")
    (found,) = logger.handlers
    logger.removeHandler(found)
    return found


def test_a_warning_is_shown_with_the_packages_name(
    handler: LastResort, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    handler.emit(RECORD)
    assert capsys.readouterr().err == "a_package: WARNING: rho is 7\n"


def test_a_program_with_a_handler_of_its_own_sees_it_there_alone(
    handler: LastResort, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    handler.emit(RECORD)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_script_sees_the_name() -> None:
    script = "import logging, hf_sam; logging.getLogger('hf_sam.trainer.logs').warning('rho is %g', 7)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stderr.splitlines()[-1] == "hf_sam: WARNING: rho is 7"
