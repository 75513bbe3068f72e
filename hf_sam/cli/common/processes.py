# SPDX-License-Identifier: Apache-2.0
"""Check that the processes of one run agree before they train."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import gather_object
from torch import distributed

from hf_sam.cli.common.errors import UserError


@contextmanager
def prepared_together(training: Any) -> Iterator[None]:
    """Let wrong input on one process end all of them with its message; the others would wait for it.

    The first process of a machine goes first, so that it downloads and tokenizes, and the others find the result.
    """
    error: UserError | None = None
    with training.main_process_first(desc="data and model"):
        try:
            yield
        except UserError as raised:
            error = raised
    message = next((m for m in gather_object([str(error) if error else None]) if m is not None), None)
    if message is not None:
        raise error or UserError(message)


def check_same(training: Any, what: str, value: object) -> None:
    """Refuse to go on when processes, on machines of their own perhaps, found different things."""
    found = gather_object([str(value)]) if training.world_size > 1 else [str(value)]
    if len(set(found)) > 1:
        listed = "; ".join(f"process {rank}: {text}" for rank, text in enumerate(found))
        raise UserError(f"the processes disagree on {what} ({listed}): all machines need the same files.")


def part() -> None:
    """End the group of processes, whose threads could abort a Python that is shutting down."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def splits_weights(training: Any) -> bool:
    """Say whether FSDP or DeepSpeed, asked for here or by the launcher, may leave a process with a part of them."""
    return bool(getattr(training, "deepspeed", None) or training.fsdp or _launched("DEEPSPEED") or _launched("FSDP"))


def _launched(engine: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() in ("1", "true")
