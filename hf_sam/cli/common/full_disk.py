# SPDX-License-Identifier: Apache-2.0
"""End a run that a full disk stops in one line, which says what is left to go on from."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from hf_sam.cli.common.checkpoints import checkpoints, find_damage
from hf_sam.cli.common.errors import UserError, one_line

_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
# safetensors and torch write in another language, and pass on what the system said as text, torch not even that.
_TORCH = re.compile(r"PytorchStreamWriter|unexpected pos \d+ vs \d+")
_TEXTS = re.compile(rf"(os error|Os \{{ code:) (28|122|27|30)\b|No space left on device|{_TORCH.pattern}")


@contextmanager
def telling_of_full_disk(folder: Path) -> Iterator[None]:
    """Turn what a full disk raises into the user's error, and remove the checkpoint that could not be finished.

    Raises:
        UserError: if a file in the folder could not be written.
    """
    there = set(checkpoints(folder))
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_full_disk(error):
            raise
        _remove_unfinished(folder, there)
        raise UserError(f"--output_dir {folder} cannot be written: {_cause(error)}: {_way_out(folder)}") from error


def is_full_disk(error: BaseException | None) -> bool:
    """Say whether an error, or the one that it was raised from, is that a file cannot be written any further."""
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return True
    if isinstance(error, (OSError, RuntimeError, SafetensorError)) and _TEXTS.search(str(error)):
        return True
    return is_full_disk(error.__cause__)


def _cause(error: BaseException) -> str:
    return "torch could write no further, as on a full disk" if _TORCH.search(str(error)) else one_line(error, 120)


def _remove_unfinished(folder: Path, there: set[Path]) -> None:
    for path in checkpoints(folder):
        if path not in there and not path.is_symlink() and find_damage(path):
            with suppress(OSError):
                shutil.rmtree(path)


def _way_out(folder: Path) -> str:
    whole = next((path for path in checkpoints(folder) if find_damage(path) is None), None)
    if whole is None:
        return "make room, then train again with --overwrite_output_dir (there is no checkpoint to go on from)"
    return f"make room, then go on from {whole.name} with --resume_from_checkpoint True"
