# SPDX-License-Identifier: Apache-2.0
"""The programs by the names that the user typed, and the one line and the status that wrong input ends them with."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from hf_sam.cli.common.errors import UserError

WITHOUT_EXTRA = 'needs the package {package!r}: pip install "hf-sam[cli]"'


@dataclass(frozen=True)
class Names:
    """What the programs are called in usage lines, help texts and errors.

    Args:
        command: What stands before the name of a program; empty where they are the files of a checkout.
    """

    command: str = "hf-sam"

    def of(self, program: str) -> str:
        """Return the name of a program: "hf-sam find-rho", or "find_rho.py"."""
        return f"{self.command} {program}" if self.command else f"{program.replace('-', '_')}.py"

    def in_text(self, text: str) -> str:
        """Return a text that says `hf-sam PROGRAM`, indented where it is a line to type, with these names."""

        def typed(found: re.Match[str]) -> str:
            run = "python scripts/" if found[1] and not self.command else ""
            return f"{found[1]}{run}{self.of(found[2])}"

        return re.sub(r"(^ {4}|)\bhf-sam (finetune|find-rho|measure)\b", typed, text, flags=re.MULTILINE)


COMMAND, FILES = Names(), Names("")


def run_program(program: str, work: Callable[[], object]) -> int:
    """Return the status of a program: 0, or 2 after one line on stderr that says what the user can put right."""
    try:
        work()
    except UserError as error:
        text = str(error)
    except ModuleNotFoundError as error:  # some are imported only where they are needed
        if (error.name or "hf_sam").partition(".")[0] == "hf_sam":
            raise
        text = f"{program} " + WITHOUT_EXTRA.format(package=error.name)
    else:
        return 0
    if int(os.environ.get("LOCAL_RANK", "0")) <= 0:  # once, not once per process
        print(f"error: {text}", file=sys.stderr)
    return 2
