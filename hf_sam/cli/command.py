# SPDX-License-Identifier: Apache-2.0
"""The command `hf-sam` of an installed hf_sam: which program was asked for?"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

PROGRAMS = {
    "finetune": "fine-tune a model, or train one from scratch",
    "find-rho": "find the radius that a run should start with",
    "measure": "measure how flat the loss is around checkpoints",
}
WITHOUT_EXTRA = 'hf-sam %s needs the package %r: pip install "hf-sam[cli]"'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program that the first argument names; returns its status, 2 for wrong input."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in {"-h", "--help"}:
        print("\n".join(["usage: hf-sam PROGRAM [recipe.yaml] [--argument value ...]", "", *_lines()]))
        return 0 if given else 2
    name, *rest = given
    if name not in PROGRAMS:
        print(f"error: hf-sam knows {', '.join(PROGRAMS)}, got {name!r}.", file=sys.stderr)
        return 2
    try:
        program = importlib.import_module(f"hf_sam.cli.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "hf_sam":
            raise
        print("error: " + WITHOUT_EXTRA % (name, error.name), file=sys.stderr)
        return 2
    status = program.main(rest)
    if name == "finetune":
        from hf_sam.cli.common.processes import part

        part()
    return int(status)


def _lines() -> list[str]:
    return [f"  {name:10} {what}" for name, what in PROGRAMS.items()]
