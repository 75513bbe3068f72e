# SPDX-License-Identifier: Apache-2.0
"""Task: scikit-learn's 1,797 images of handwritten digits, 8 x 8 pixels. Needs no network and no argument."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.models import parse_overrides
from hf_sam.cli.common.reading.sources import Tables
from hf_sam.cli.common.reading.tables import Table
from hf_sam.cli.tasks.base import Task
from hf_sam.cli.tasks.image import assemble

DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-3,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 256,
    "num_train_epochs": 45,
    "warmup_steps": 100,
    "weight_decay": 0.1,
    "eval_strategy": "steps",
    "eval_steps": 230,
    "save_strategy": "steps",
    "save_steps": 460,
    "metric_for_best_model": "accuracy",
    "torch_threads": 1,
}
SMALL_VIT: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 2,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}


def build(args: ScriptArguments, training: Any) -> Task:
    """Read the digits; the model is a small ViT unless another is asked for."""
    for name in (*args.given_files(), "dataset_name"):
        if getattr(args, name):
            raise UserError(f"--{name} does nothing with --task digits: add --task text or image (or a GLUE task).")
    if args.model_name_or_path is None and args.model_type in (None, "vit") and args.config_name is None:
        overrides = SMALL_VIT | parse_overrides(args.config_overrides)
        args = dataclasses.replace(args, model_type="vit", config_overrides=json.dumps(overrides))
    train, test = digits()
    args.refuse("digits", "text_column", "text_pair_column", "image_column", "label_column", "label_columns", "problem")
    tables: Tables = {}
    if training.do_train:
        tables["train"] = Table("digits", train)
    if training.do_eval:
        tables["validation"] = Table("digits", test)
    if training.do_predict:
        tables["test"] = Table("digits", test)
    return assemble(args, training, tables, card={"dataset": "scikit-learn digits"})


def digits() -> tuple[Dataset, Dataset]:
    """Return the training and the test images: 80 and 20 % of every class, the same in every run."""
    source = load_digits()
    pixels = (source.images * 15).astype(np.uint8)  # from 0-16 to 0-240
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    parts = train_test_split(np.arange(len(pixels)), test_size=0.2, stratify=source.target, random_state=0)
    train, test = (
        Dataset.from_dict(
            {"image": [Image.fromarray(pixels[row]) for row in rows], "label": source.target[rows]}, features=features
        )
        for rows in parts
    )
    return train, test
