# SPDX-License-Identifier: Apache-2.0
"""Which folder may be written to, and which checkpoint can training go on from?"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_sam.cli.common.errors import UserError

logger = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "pytorch_model.bin")
_RESULTS = (
    "all_results.json",
    "run_results.json",
    "train_results.json",
    "eval_results.json",
    "predict_results.json",
    "trainer_state.json",
)

# What FSDP writes beside or instead of the files of one process; of a folder, the file that is written last.
_SHARDED = ("pytorch_model_fsdp_0/.metadata",)
_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0/.metadata")

# Entries of a config that say how it was saved or loaded, and nothing about the model.
_INCIDENTAL = ("architectures", "dtype", "torch_dtype", "transformers_version", "problem_type", "use_cache")


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders, newest first."""
    found = [(int(m[1]), p) for p in folder.glob("checkpoint-*") if p.is_dir() and (m := _CHECKPOINT.fullmatch(p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def check_output_dir(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that is a file, and one whose model would be lost."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} must be a folder, but it is a file.")
    parent = next(p for p in folder.absolute().parents if p.exists())
    if not parent.is_dir():
        raise UserError(f"--output_dir {folder} cannot be made: {parent} is a file.")
    if resume or overwrite or not folder.exists():
        return
    if checkpoints(folder) or any((folder / name).exists() for name in (*_WEIGHTS, *_RESULTS)):
        raise UserError(
            f"--output_dir {folder} already holds a model: give another folder, continue with "
            "--resume_from_checkpoint True, or replace it with --overwrite_output_dir."
        )


def check_links(folder: Path) -> None:
    """Refuse a folder with a link that leads out of it, where our files would land."""
    inside = Path(os.path.realpath(folder))
    for where, folders, files in os.walk(folder):  # which does not follow links
        for path in (Path(where, name) for name in (*folders, *files)):
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
                raise UserError(
                    f"--output_dir {folder} holds {path.relative_to(folder)}, a link that leads out of it: "
                    "remove the link or give another folder."
                )


def clear_output_dir(folder: Path) -> None:
    """Remove the checkpoints, weights and results of the run before; anything else stays."""
    for path in checkpoints(folder):
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)
    for name in (*_WEIGHTS, *_RESULTS):
        (folder / name).unlink(missing_ok=True)


def find_checkpoint(resume: str | bool | None, folder: Path) -> Path | None:
    """Return the checkpoint that `--resume_from_checkpoint` means, or None to start from the beginning."""
    if resume is None or str(resume).lower() in ("false", "no"):
        return None
    if str(resume).lower() not in ("true", "yes"):
        path = Path(str(resume))
        if not path.is_dir():
            raise UserError(f"--resume_from_checkpoint {path} does not exist (or is no folder).")
        if damage := find_damage(path):
            raise UserError(f"--resume_from_checkpoint {path} is incomplete ({damage}): use the checkpoint before it.")
        return path
    for path in checkpoints(folder):
        damage = find_damage(path)
        if damage is None:
            return path
        logger.warning("Passing over %s: it is incomplete (%s).", path, damage)
    if any((folder / name).exists() for name in _WEIGHTS):
        raise UserError(
            f"--resume_from_checkpoint True: {folder} holds a finished model but no checkpoint to go on from; "
            "give another --output_dir or --overwrite_output_dir."
        )
    logger.warning("No checkpoint to resume from in %s: training starts from the beginning.", folder)
    return None


def find_damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint whose saving was interrupted, None if it is complete."""
    if not (checkpoint / "trainer_state.json").is_file():  # Trainer writes it last
        return "no trainer_state.json"
    for what, names in (("weights", _WEIGHTS + _SHARDED), ("optimizer.pt", _OPTIMIZER), ("scheduler.pt", None)):
        if not any((checkpoint / name).is_file() for name in names or (what,)):
            return f"no {what}"
    return next((f"{path.name} is truncated" for path in sorted(checkpoint.iterdir()) if not _is_whole(path)), None)


def _is_whole(path: Path) -> bool:
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return False
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError:
            return False
    if path.suffix in (".pt", ".pth", ".bin") and path.name != "training_args.bin":
        return zipfile.is_zipfile(path)  # the table of contents is at the end, so a truncated file has none
    return True


def check_same_model(checkpoint: Path, model: Any) -> None:
    """Refuse a checkpoint that another model wrote."""
    where = f"--resume_from_checkpoint {checkpoint}"
    is_adapter = (checkpoint / "adapter_config.json").is_file()
    if is_adapter != hasattr(model, "peft_config"):
        kind = "LoRA adapters" if is_adapter else "a whole model"
        raise UserError(f"{where} holds {kind}: --lora_r must be as in the run before.")
    if is_adapter:
        there = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
        here = model.peft_config["default"].to_dict()
        keys = ["r", "lora_alpha"]
    elif any((checkpoint / name).is_file() for name in _SHARDED):
        return  # it names no model; loading compares the tensors
    else:
        here = model.config.to_dict()
        there, _ = model.config.get_config_dict(checkpoint)
        if there.get("model_type") == here["model_type"]:
            # By the class that is loaded already: the checkpoint may name code of its own.
            there = type(model.config).from_dict(there).to_dict()
        keys = ["model_type", *(key for key in here if key not in _INCIDENTAL and not key.startswith("_"))]
    # Tensor names would be the other way to tell, but transformers renames some between memory and file.
    for key in keys:
        if there.get(key) != here.get(key):
            raise UserError(
                f"{where} is a checkpoint of another model: {key} is {there.get(key)} there and {here.get(key)} here."
            )
