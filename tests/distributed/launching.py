# SPDX-License-Identifier: Apache-2.0
"""How does a test launch scripts/finetune.py as a user does, and what does it train?"""

from __future__ import annotations

import csv
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizerFast

from tests.warm import ROOT, TIMEOUT, environment

SCRIPT = str(ROOT / "scripts" / "finetune.py")
# An odd number of images to evaluate: two processes cannot share them evenly.
DIGITS = [  # with a radius: "auto" would not perturb in so few steps
    "--use_cpu", "--disable_tqdm", "True", "--max_steps", "4", "--save_steps", "2", "--save_total_limit", "4",
    "--eval_steps", "100", "--max_train_samples", "64", "--per_device_train_batch_size", "8",
    "--max_eval_samples", "51", "--max_predict_samples", "51", "--per_device_eval_batch_size", "8",
    "--rho", "0.05",
]  # fmt: skip
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # an evaluation moves the random streams
WORDS = ["good", "bad", "film", "plot", "the", "very"]


def reviews(folder: Path) -> list[str]:
    """Write sentences and a tokenizer; return the arguments that train a small BERT on them."""
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]), "utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "tokenizer")
    with (folder / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [[f"the {WORDS[2 + i % 2]} very {WORDS[i // 3 % 2]}", i % 2] for i in range(51)]
        csv.writer(file).writerows([["sentence", "label"], *rows])
    file = str(folder / "reviews.csv")
    return [
        "--task", "sst2", "--model_type", "bert", "--config_overrides", json.dumps(SMALL | STILL),
        "--tokenizer_name", str(folder / "tokenizer"), "--train_file", file, "--validation_file", file,
        "--use_cpu", "--disable_tqdm", "True", "--max_steps", "4", "--per_device_train_batch_size", "4",
        "--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "no", "--rho", "0.5",
        "--learning_rate", "1e-2", "--adam_epsilon", "1e-2",
    ]  # fmt: skip


def torchrun(*arguments: Any) -> list[str]:
    """Return a command that starts two processes."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return [*run, *map(str, arguments)]


def accelerate(config: str, *arguments: Any) -> list[str]:
    """Return a command that launches with one of our YAML files."""
    file = str(ROOT / "scripts" / "accelerate" / f"{config}.yaml")
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", file, *map(str, arguments)]


def runs(folder: Path, argv: dict[str, list[str]]) -> list[str]:
    """Return what a launcher needs to run the script with each of the arguments, in one launch."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.json").write_text(json.dumps(argv))
    return ["-m", "tests.distributed.script", str(folder / "runs.json"), str(folder)]


def free_port() -> str:
    """Return a port that was free a moment ago, for launches that meet each other."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


def start(command: list[str], **variables: str) -> subprocess.Popen[str]:
    """Start a launch."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**environment(), **variables}, **pipes)


def finish(*launches: subprocess.Popen[str]) -> list[str]:
    """Wait for launches that have to succeed; return what each printed."""
    printed = []
    for launch in launches:
        out, err = launch.communicate(timeout=TIMEOUT)
        if launch.returncode:
            raise AssertionError(f"{launch.args} ended with {launch.returncode}:\n{out[-3000:]}\n{err[-20000:]}")
        printed.append(out)
    return printed


def found(folder: Path, name: str, processes: int = 2) -> list[dict[str, Any]]:
    """Return what each process found in a run."""
    return [torch.load(folder / f"{name}.{rank}.pt", weights_only=False) for rank in range(processes)]


def same_weights(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Return whether two runs ended with the same bits."""
    names = [name for name in left if name.startswith("weight ")]
    return bool(names) and all(torch.equal(left[name], right[name]) for name in names)


def results(folder: Path) -> dict[str, Any]:
    """Return what the script wrote about a run."""
    loaded: dict[str, Any] = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    return loaded
