# SPDX-License-Identifier: Apache-2.0
"""Does a full disk end a run in one line that says what to go on from, and is no half checkpoint left?"""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hf_sam import SAMTrainer
from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.full_disk import is_full_disk, telling_of_full_disk

Run = Callable[..., tuple[int, str]]
LARGE = {"weight": torch.zeros(10_000)}


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let the system refuse files that are longer, as a full disk does in the middle of one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(40_000)),
        lambda path: torch.save(LARGE, path),
        lambda path: save_file(LARGE, path),
    ],
)
def test_what_each_library_raises_is_known(write: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(Exception) as caught, room_for(10_000):  # noqa: PT011
        write(tmp_path / "file")
    assert is_full_disk(caught.value), repr(caught.value)


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (SafetensorError('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "" })'), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), False),
        (RuntimeError("expected all tensors to be on the same device"), False),
        (RuntimeError("PytorchStreamReader failed reading zip archive [enforce fail at inline_container.cc:1]"), False),
    ],
)
def test_other_errors_are_left_alone(error: Exception, is_full: bool, tmp_path: Path) -> None:
    outer = RuntimeError("saving failed")
    outer.__cause__ = error
    assert is_full_disk(error) is is_full_disk(outer) is is_full
    with pytest.raises(UserError if is_full else type(error)), telling_of_full_disk(tmp_path):
        raise error


@pytest.mark.slow
def test_a_run_says_where_to_go_on_and_goes_on(
    run: Run, sst2: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    argv = [*sst2, "--num_train_epochs", 2]
    save = SAMTrainer._save_optimizer_and_scheduler

    def fails_at_the_second(self: Any, folder: str) -> None:
        if Path(folder).name == "checkpoint-6":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, folder)

    monkeypatch.setattr(SAMTrainer, "_save_optimizer_and_scheduler", fails_at_the_second)
    status, errors = run(*argv)
    line = next(line for line in errors.splitlines() if line.startswith("error: "))
    assert status == 2
    assert "Traceback" not in errors
    assert line.startswith(
        f"error: --output_dir {out} cannot be written: [Errno 28] No space left on device: make room"
    )
    assert "go on from checkpoint-3 with --resume_from_checkpoint True" in line
    assert [path.name for path in out.iterdir()] == ["checkpoint-3"]
    monkeypatch.undo()
    assert run(*argv, "--resume_from_checkpoint", "True")[0] == 0
    assert (out / "checkpoint-6" / "trainer_state.json").is_file()


@pytest.mark.slow
def test_without_a_checkpoint_it_says_so_and_keeps_what_was_there(
    run: Run, sst2: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine", encoding="utf-8")

    def fails(self: Any, folder: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SAMTrainer, "_save_optimizer_and_scheduler", fails)
    status, errors = run(*sst2)
    assert status == 2
    assert "there is no checkpoint to go on from" in errors
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def _begin_and_fail(checkpoint: Path) -> None:
    checkpoint.mkdir()
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_damaged_checkpoint_of_an_earlier_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(UserError, match="no checkpoint to go on from"), telling_of_full_disk(tmp_path):
        _begin_and_fail(tmp_path / "checkpoint-2")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
