# SPDX-License-Identifier: Apache-2.0
"""Does a digits checkpoint load where hf_sam does not exist, and predict the same? (The last step of `make run`.)

python scripts/reload.py outputs/digits-sam     # a folder that finetune.py --task digits --do_predict wrote
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import AutoModelForImageClassification, pipeline

from hf_sam.cli.tasks.digits import digits

IMAGES = digits()[1]["image"][:]


def count_differences(folder: Path) -> tuple[int, int]:
    """Compare the pipeline's labels with those written after training. Returns how many differ, and of how many."""
    written = [
        line.split("\t")[1] for line in (folder / "predictions.tsv").read_text(encoding="utf-8").splitlines()[1:]
    ]
    AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=False)
    classify = pipeline("image-classification", model=str(folder), device="cpu", trust_remote_code=False)
    labels = [answer[0]["label"] for answer in classify(IMAGES, top_k=1)]
    return sum(a != b for a, b in zip(labels, written, strict=True)), len(written)


def main() -> int:
    """Check every folder; 1 if one differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    for name in [name for name in sys.modules if name.partition(".")[0] == "hf_sam"]:  # it has given the images
        del sys.modules[name]
    # None in sys.modules makes `import hf_sam` fail, as on a machine that never installed it.
    sys.modules["hf_sam"] = None  # type: ignore[assignment]
    torch.set_num_threads(1)  # one small image at a time: more threads only wait for each other
    status = 0
    for folder in parser.parse_args().folders:
        different, total = count_differences(folder)
        print(f"{folder}: {total - different} of {total} predictions are the same without hf_sam")
        status |= different > 0
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
