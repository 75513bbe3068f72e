# SPDX-License-Identifier: Apache-2.0
"""Measures with the examples split over processes and writes what each one found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from hf_sam.sharpness import SharpnessAnalyzer
from tests.sharpness.models import build


def found(family: str) -> dict[str, object]:
    model, examples = build(family)
    one = SharpnessAnalyzer(model, examples, dtype="float64", batch_size=2)
    return {
        "loss": one.loss(),
        "gradient": one.loss_function.gradient()[1].tolist(),
        "eigenvalues": one.top_eigenvalues(2, tol=1e-6).values,
        "trace": one.trace(12).value,
        "sam": one.sam_sharpness().value,
        "m": one.sam_sharpness(m=2).parts,
        "worst": one.worst_case(steps=3).value,
        "average": one.average_case(n=2).value,
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    results = {family: found(family) for family in ("bert", "gpt2")}
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(results), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
