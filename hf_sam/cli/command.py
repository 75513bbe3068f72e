# SPDX-License-Identifier: Apache-2.0
"""The command `hf-sam` of an installed hf_sam: run the program that its first argument names."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence

from hf_sam.cli.common.programs import Names, run_program

PROGRAMS = {
    "finetune": "fine-tune a model, or train one from scratch",
    "find-rho": "find the radius that a run should start with",
    "measure": "measure how flat the loss is around checkpoints, and how robust they are",
}


def main(argv: Sequence[str] | None = None, *, command: str = "hf-sam") -> int:
    """Run the program that the first argument names; returns its status, 2 for wrong input."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in {"-h", "--help"}:
        print("\n".join([f"usage: {command} PROGRAM [--argument value ...]", "", *_lines(), "", *_more(command)]))
        return 0 if given else 2
    name, *rest = given
    if name not in PROGRAMS:
        close = difflib.get_close_matches(name, PROGRAMS, n=1)
        guess = f", did you mean {close[0]!r}?" if close else "."
        print(f"error: {command} knows {', '.join(PROGRAMS)}, got {name!r}{guess}", file=sys.stderr)
        return 2
    names, status = Names(command), 0

    def run() -> None:
        nonlocal status
        status = _program(name)(rest, names=names)
        if name == "finetune":
            from hf_sam.cli.common.processes import part

            part()

    return run_program(names.of(name), run) or status


def _program(name: str) -> Callable[..., int]:
    """Return a program, imported now: each needs other packages, and seconds for them."""
    if name == "finetune":
        from hf_sam.cli.finetune import main as program
    elif name == "find-rho":
        from hf_sam.cli.find_rho import main as program
    else:
        from hf_sam.cli.measure import main as program
    return program


def _lines() -> list[str]:
    return [f"  {name:10} {what}" for name, what in PROGRAMS.items()]


def _more(command: str) -> list[str]:
    return [f"{command} PROGRAM --help lists the arguments of each."]
