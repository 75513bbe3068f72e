# SPDX-License-Identifier: Apache-2.0
"""What of ours must survive a resume, and how is it stored?"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_sam.config import SAMConfig

JSON_NAME = "sam_state.json"
TENSORS_NAME = "sam_state.safetensors"
FORMAT = 2
FIELDS = ("rho", "sam_variant", "sam_variant_kwargs", "sam_scope")


def save_state(directory: str | os.PathLike[str], config: SAMConfig, state: dict[str, Any]) -> None:
    """Write the configuration and the variant's state beside an ordinary checkpoint.

    Each file is written under another name and then renamed, so a reader never sees half of one.

    Args:
        directory: the checkpoint folder; made if absent.
        config: what the run was configured with, so that a resume can compare.
        state: `Variant.state_dict()`; tensors go to safetensors, the rest to JSON.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
        for k, v in state.items()
        if isinstance(v, torch.Tensor)
    }
    content: dict[str, Any] = {
        "format": FORMAT,
        "config": {k: v for k, v in asdict(config).items() if k in FIELDS},
        "values": {k: v for k, v in state.items() if not isinstance(v, torch.Tensor)},
        "tensors": sorted(tensors),
    }
    content = json.loads(json.dumps(content))  # as a reader will see it; raises before a file is touched
    if tensors:
        partial = _partial(directory / TENSORS_NAME)
        save_file(tensors, partial)
        content["tensors_sha256"] = _digest_of_file(partial)
        os.replace(partial, directory / TENSORS_NAME)
    content["sha256"] = _digest(content)
    partial = _partial(directory / JSON_NAME)
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, directory / JSON_NAME)


def load_state(directory: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Read what `save_state` wrote. Nothing in the files is executed, imported or followed.

    Returns:
        The configuration's fields and the variant's state (tensors on the CPU), or None if the checkpoint holds none.

    Raises:
        ValueError: if the files are damaged or of another format.
    """
    path, tensors_path = Path(directory) / JSON_NAME, Path(directory) / TENSORS_NAME
    if not os.path.lexists(path) and not os.path.lexists(tensors_path):
        return None
    try:
        content = _read_json(path)
        config, state, names = dict(content["config"]), dict(content["values"]), list(content["tensors"])
        tensors = _read_tensors(tensors_path, content["tensors_sha256"]) if names else {}
        if sorted(tensors) != names:
            raise ValueError(f"{TENSORS_NAME} holds {sorted(tensors)}, {JSON_NAME} promises {names}")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError, SafetensorError) as error:
        raise ValueError(
            f"The SAM state in {os.fspath(directory)!r} cannot be read ({error}). Resume from another checkpoint, or "
            f"delete {JSON_NAME} and {TENSORS_NAME} there to go on without it."
        ) from error
    return config, {**state, **tensors}


def _read_json(path: Path) -> dict[str, Any]:
    _check_file(path)
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']!r}, this version reads {FORMAT}")
    if content.pop("sha256") != _digest(content):
        raise ValueError(f"{JSON_NAME} was changed after it was written: its checksum is another")
    return content


def _read_tensors(path: Path, digest: str) -> dict[str, torch.Tensor]:
    _check_file(path)
    if _digest_of_file(path) != digest:
        raise ValueError(f"{TENSORS_NAME} is not the one that {JSON_NAME} was written with: its checksum is another")
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)


def _check_file(path: Path) -> None:
    if not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{path.name} is missing, or no file")


def _partial(path: Path) -> Path:
    """Return where to write before renaming; what lies there is removed, a link too, so that none is followed."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    return partial


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
