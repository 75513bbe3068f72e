# SPDX-License-Identifier: Apache-2.0
"""Does SAM help when labels are wrong? Train the same ViT with AdamW and with SAM and print both (`make run`).

python scripts/side_by_side.py                    # one seed, and the defaults of finetune.py on clean labels
python scripts/side_by_side.py --seeds 1 2 3      # mean and spread
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # `python scripts/side_by_side.py` puts scripts/ there, the import needs the root

from hf_sam.cli.common.environment import environment  # noqa: E402


@dataclass
class Run:
    """One line of the table: the same command for every seed."""

    label: str
    name: str
    arguments: list[str]
    results: list[dict[str, Any]] = field(default_factory=list)

    def accuracies(self) -> list[float]:
        """Test accuracy in %, one per seed."""
        return [100 * result["test_accuracy"] for result in self.results]


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything; non-zero if a run or a reload failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="one run of each method per seed")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/side_by_side"), help="its runs are replaced")
    parser.add_argument("--extra", nargs="*", default=[], help="more arguments for every run, such as max_steps=100")
    parser.add_argument("--json", type=Path, help="also write every run's results to this file")
    args = parser.parse_args(argv)
    extra = [f"--{pair}" for pair in args.extra]
    runs = [
        Run("AdamW, 40 % noise", "noise_adamw", [str(HERE / "recipes" / "digits_noise_adamw.yaml"), *extra]),
        Run("SAM, 40 % noise", "noise_sam", [str(HERE / "recipes" / "digits_noise_sam.yaml"), *extra]),
        Run("SAM, clean (defaults)", "clean_sam", ["--do_predict", *extra]),
    ]
    started = time.perf_counter()
    for run in runs:
        for seed in args.seeds if run is not runs[-1] else args.seeds[:1]:
            run.results.append(_train(run, seed, args.output_dir))
    status = _reload([args.output_dir / f"{run.name}-{args.seeds[0]}" for run in runs])
    _print(runs, time.perf_counter() - started, reloaded=status == 0)
    if args.json:
        _write(args.json, runs, args.seeds)
    return status


def _train(run: Run, seed: int, folder: Path) -> dict[str, Any]:
    output = folder / f"{run.name}-{seed}"
    print(f"\n=== {run.label}, seed {seed} -> {output}", flush=True)
    command = [sys.executable, str(HERE / "finetune.py"), *run.arguments, "--seed", str(seed)]
    command += ["--output_dir", str(output), "--overwrite_output_dir"]
    status = subprocess.run(command, check=False).returncode
    if status != 0:
        print(f"error: the run '{run.label}' ended with status {status}.", file=sys.stderr)
        sys.exit(status if status > 0 else 1)
    results: dict[str, Any] = json.loads((output / "all_results.json").read_text(encoding="utf-8"))
    return results


def _reload(folders: list[Path]) -> int:
    print("\n=== Loading the checkpoints in a new process without hf_sam", flush=True)
    return subprocess.run([sys.executable, str(HERE / "reload.py"), *map(str, folders)], check=False).returncode


def _write(path: Path, runs: list[Run], seeds: list[int]) -> None:
    found = {
        run.name: {
            "arguments": [argument.removeprefix(f"{HERE.parent}/") for argument in run.arguments],
            "seeds": seeds[: len(run.results)],
            "results": run.results,
        }
        for run in runs
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment(), "runs": found}, indent=2) + "\n", encoding="utf-8")


def _print(runs: list[Run], seconds: float, *, reloaded: bool) -> None:
    table = Table(title="Small ViT on scikit-learn's digits: noise in the training labels only")
    for column in ("method", "test accuracy", "sharpness", "training", "x AdamW"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    base = _mean(runs[0], "train_runtime")
    for run in runs:
        sharpness = f"{_mean(run, 'sharpness'):.3f}" if "sharpness" in run.results[0] else ""
        taken = _mean(run, "train_runtime")
        ratio = f"{taken / base:.2f}" if run is not runs[-1] else ""  # the last run takes other steps
        table.add_row(run.label, _spread(run.accuracies()), sharpness, f"{taken:.0f} s", ratio)
    console = Console()
    console.print()
    console.print(table)
    gain = statistics.mean(runs[1].accuracies()) - statistics.mean(runs[0].accuracies())
    console.print(f"With wrong labels SAM ends {gain:+.1f} points from AdamW. Whole comparison: {seconds:.0f} s.")
    console.print(
        "Checkpoints without hf_sam: " + ("same predictions." if reloaded else "[red]DIFFERENT predictions[/red].")
    )


def _mean(run: Run, key: str) -> float:
    return statistics.mean(float(result[key]) for result in run.results)


def _spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} %"


if __name__ == "__main__":
    sys.exit(main())
