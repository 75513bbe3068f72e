# SPDX-License-Identifier: Apache-2.0
"""What of ours must survive a resume, and how is it stored?"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_sam.config.sam_config import SAMConfig

JSON_NAME = "sam_state.json"
TENSORS_NAME = "sam_state.safetensors"
FORMAT = 3
FIELDS = tuple(f.name for f in fields(SAMConfig))


def save_state(
    directory: str | os.PathLike[str],
    config: SAMConfig,
    state: dict[str, Any],
    *,
    process: int = 0,
    processes: int = 1,
) -> None:
    """Write the configuration and what the direction, the radius and the gate remember beside an ordinary checkpoint.

    Each file is written under another name and then renamed, so a reader never sees half of one.

    Args:
        directory: the checkpoint folder; made if absent.
        config: what the run was configured with, so that a resume can compare.
        state: `StepPlanner.state_dict()`; tensors go to safetensors, the rest to JSON.
        process: rank of this process, where each has a state of its own and calls this.
        processes: how many of them there are; 1 where one state serves all.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    path, tensors_path = _paths(directory, process)
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
        "processes": processes,
    }
    content = json.loads(json.dumps(content))  # as a reader will see it; raises before a file is touched
    if tensors:
        partial = _partial(tensors_path)
        save_file(tensors, partial)
        content["tensors_sha256"] = _digest_of_file(partial)
        os.replace(partial, tensors_path)
    content["sha256"] = _digest(content)
    partial = _partial(path)
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def load_state(
    directory: str | os.PathLike[str], *, process: int = 0, processes: int = 1
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Read what `save_state` wrote. Nothing in the files is executed, imported or followed.

    Args:
        directory: the checkpoint folder.
        process: rank of this process.
        processes: how many processes there are now.

    Returns:
        The configuration's fields and what was remembered (tensors on the CPU), or None if the checkpoint holds none.

    Raises:
        ValueError: if the files are damaged, of another format, or of another number of processes.
    """
    path, tensors_path = _paths(directory, 0)
    if not os.path.lexists(path) and not os.path.lexists(tensors_path):
        return None
    try:
        content = _read_json(path)
        if content["processes"] > 1:  # each has a state of its own
            if content["processes"] != processes:
                raise ValueError(f"it is the state of {content['processes']} processes, now there are {processes}")
            path, tensors_path = _paths(directory, process)
            content = _read_json(path)
        config, state, names = dict(content["config"]), dict(content["values"]), list(content["tensors"])
        tensors = _read_tensors(tensors_path, content["tensors_sha256"]) if names else {}
        if sorted(tensors) != names:
            raise ValueError(f"{tensors_path.name} holds {sorted(tensors)}, {path.name} promises {names}")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError, SafetensorError) as error:
        raise ValueError(
            f"The SAM state in {os.fspath(directory)!r} cannot be read ({error}). Resume from another checkpoint, or "
            f"delete {path.name} and {tensors_path.name} there to go on without it."
        ) from error
    return config, {**state, **tensors}


def _paths(directory: str | os.PathLike[str], process: int) -> tuple[Path, Path]:
    """Return where a process has its two files; all but the first have their rank in the names."""
    rank = f".{process}" if process else ""
    return tuple(Path(directory) / name.replace(".", f"{rank}.") for name in (JSON_NAME, TENSORS_NAME))  # type: ignore[return-value]


def _read_json(path: Path) -> dict[str, Any]:
    _check_file(path)
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']!r}, this version reads {FORMAT}")
    if content.pop("sha256") != _digest(content):
        raise ValueError(f"{path.name} was changed after it was written: its checksum is another")
    return content


def _read_tensors(path: Path, digest: str) -> dict[str, torch.Tensor]:
    _check_file(path)
    if _digest_of_file(path) != digest:
        raise ValueError(f"{path.name} is not the one that its JSON was written with: its checksum is another")
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
