# SPDX-License-Identifier: Apache-2.0
"""What can go wrong while a checkpoint is written? Every write can fail, before it or amid it, and the disk be full."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import io
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch
import torch

from tests.faults.injector import DISK, TOO_LARGE, Injector

OPEN = builtins.open  # before it is replaced


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of every file, to see whether one has changed."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.is_file()}


@contextlib.contextmanager
def watched_files(injector: Injector) -> Iterator[None]:
    """Make each write an opportunity: before it, and when half of the file is there; or limit the size of files."""

    def watch(write: Callable[..., Any], path_at: int) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            path = Path(args[path_at]) if isinstance(args[path_at], str | os.PathLike) else None
            if path is None or (write is OPEN and (args[1:2] or [kwargs.get("mode", "r")])[0][0] not in "wax"):
                return write(*args, **kwargs)
            injector.strike("saving", f"before {path.name}")
            result = write(*args, **kwargs)
            if injector.is_due("saving", f"amid {path.name}"):
                size = path.stat().st_size
                path.write_bytes(b"{" if write is OPEN else path.read_bytes()[: size // 2])
                injector.raise_now()
            return result

        return run

    opened = watch(builtins.open, 0)
    with (
        mock.patch.object(torch, "save", watch(torch.save, 1)),
        mock.patch.object(safetensors.torch, "serialize_file", watch(safetensors.torch.serialize_file, 1)),
        mock.patch.object(os, "replace", watch(os.replace, 1)),
        mock.patch.object(builtins, "open", opened),
        mock.patch.object(io, "open", opened),
        file_size_limit(injector),
    ):
        yield


@contextlib.contextmanager
def file_size_limit(injector: Injector) -> Iterator[None]:
    """Let the system refuse to write a file beyond some size, as on a full disk, if this is the opportunity."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    due = [limit for limit in (0, 100, 700, 3000) if injector.is_due(DISK, f"{limit} bytes")]
    if due:
        injector.fired = TOO_LARGE
        resource.setrlimit(resource.RLIMIT_FSIZE, (due[0], limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
