# SPDX-License-Identifier: Apache-2.0
"""What of ours must survive a resume, and how is it stored?"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_sam.config import SAMConfig

JSON_NAME = "sam_state.json"
TENSORS_NAME = "sam_state.safetensors"
FORMAT = 1
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
    values = {k: v for k, v in state.items() if not isinstance(v, torch.Tensor)}
    token = uuid.uuid4().hex  # the same in both files: a crash between the two renames must not go unnoticed
    content = {
        "format": FORMAT,
        "config": {k: v for k, v in asdict(config).items() if k in FIELDS},
        "values": values,
        "tensors": sorted(tensors),
        "token": token,
    }
    text = json.dumps(content, indent=2) + "\n"
    if tensors:
        partial = directory / f".{TENSORS_NAME}.partial"
        save_file(tensors, partial, metadata={"token": token})
        os.replace(partial, directory / TENSORS_NAME)
    partial = directory / f".{JSON_NAME}.partial"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, directory / JSON_NAME)


def load_state(directory: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Read what `save_state` wrote.

    Returns:
        The configuration's fields and the variant's state (tensors on the CPU), or None if the checkpoint holds none.

    Raises:
        ValueError: if the files are damaged or of another format.
    """
    path = Path(directory) / JSON_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, this version reads {FORMAT}")
        config, state, names = dict(content["config"]), dict(content["values"]), list(content["tensors"])
        tensors = _load_tensors(Path(directory) / TENSORS_NAME, content["token"]) if names else {}
        if sorted(tensors) != names:
            raise ValueError(f"{TENSORS_NAME} holds {sorted(tensors)}, {JSON_NAME} promises {names}")
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise ValueError(
            f"The SAM state in {os.fspath(directory)!r} cannot be read ({error}). Resume from another checkpoint, or "
            f"delete {JSON_NAME} and {TENSORS_NAME} there to go on without it."
        ) from error
    return config, {**state, **tensors}


def _load_tensors(path: Path, token: str) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("token") != token:
            raise ValueError(f"{TENSORS_NAME} and {JSON_NAME} were not written together")
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
