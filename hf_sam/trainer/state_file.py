# SPDX-License-Identifier: Apache-2.0
"""Store what of SAM must survive a resume in the folder of an ordinary checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_sam.config.sam_config import SAMConfig
from hf_sam.trainer.shared_arguments import FIELDS

JSON_NAME = "sam_state.json"
TENSORS_NAME = "sam_state.safetensors"
FORMAT = 4


def save_state(
    directory: str | os.PathLike[str],
    config: SAMConfig,
    state: dict[str, Any],
    *,
    step: int = 0,
    process: int = 0,
    processes: int = 1,
) -> None:
    """Write the configuration and what the variant, the radius and the gate remember into a checkpoint's folder.

    Each file is written under another name and then renamed, so a reader never sees half of one. Both hold the same
    id, which is another one for every step and every setting, so a reader never takes one of them with another one's
    partner. There are no checksums: a file whose structure is right is believed. The same state makes the same bytes.

    Args:
        directory: the checkpoint folder; made if absent.
        config: what the run was configured with, so that a resume can compare.
        state: `StepPlanner.state_dict()`; tensors go to safetensors, the rest to JSON.
        step: optimizer steps taken so far, >= 0.
        process: rank of this process, where each has a state of its own and calls this.
        processes: how many of them there are; 1 where one state serves all.

    Raises:
        TypeError: if a value is one that JSON does not have.
        ValueError: if a number outside tensors is not finite.
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
        "tensors": {name: _outline(t) for name, t in tensors.items()},
        "step": step,
        "process": process,
        "processes": processes,
    }
    content["id"] = hashlib.sha1(_as_json(content).encode()).hexdigest()  # raises before a file is touched
    text = _as_json(content)
    if tensors:
        _write(tensors_path, lambda to: save_file(tensors, to, metadata={"id": content["id"]}))
    _write(path, lambda to: to.write_text(text, encoding="utf-8"))


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
        tensors = _read_tensors(tensors_path, content) if content["tensors"] else {}
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError, SafetensorError) as error:
        raise ValueError(
            f"The SAM state in {os.fspath(directory)!r} cannot be read ({error}). Resume from another checkpoint, or "
            f"delete {path.name} and {tensors_path.name} there to go on without it."
        ) from error
    return content["config"], {**content["values"], **tensors}


def _paths(directory: str | os.PathLike[str], process: int) -> tuple[Path, Path]:
    """Return where a process has its two files; all but the first have their rank in the names."""
    rank = f".{process}" if process else ""
    return tuple(Path(directory) / name.replace(".", f"{rank}.") for name in (JSON_NAME, TENSORS_NAME))  # type: ignore[return-value]


def _read_json(path: Path) -> dict[str, Any]:
    _check_file(path)
    text = path.read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text, parse_float=_finite, parse_constant=_finite)
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']!r}, this version reads {FORMAT}")
    for name, kind in (("config", dict), ("values", dict), ("tensors", dict), ("processes", int), ("id", str)):
        if not isinstance(content[name], kind):
            raise ValueError(f"{name!r} in {path.name} is {type(content[name]).__name__}, not {kind.__name__}")
    return content


def _read_tensors(path: Path, content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Read the tensors that belong to the content of a JSON file."""
    _check_file(path)
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("id") != content["id"]:
            raise ValueError(f"{path.name} is not the one that its JSON was written with: its id is another")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    found = {name: _outline(t) for name, t in tensors.items()}
    if found != content["tensors"]:
        raise ValueError(f"{path.name} holds {found}, its JSON promises {content['tensors']}")
    return tensors


def _as_json(content: dict[str, Any]) -> str:
    try:
        return json.dumps(content, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        values = {**content["config"], **content["values"]}
        raise ValueError(
            f"The SAM state cannot be saved ({error}): a NaN or an infinity can be kept in a tensor only, in {values}."
        ) from error


def _outline(tensor: torch.Tensor) -> list[Any]:
    """Return the type and the shape of a tensor, as JSON holds them."""
    return [str(tensor.dtype), list(tensor.shape)]


def _finite(text: str) -> float:
    """Return a number that JSON spells like this; raise for NaN and infinities."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds {text}, which is no finite number")
    return number


def _check_file(path: Path) -> None:
    if not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{path.name} is missing, or no file")


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name, then rename it; a link under either name is replaced, not followed."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    write(unfinished)
    os.replace(unfinished, path)
