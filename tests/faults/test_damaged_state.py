# SPDX-License-Identifier: Apache-2.0
"""Is a damaged SAM state told, whatever the damage, and is nothing in it executed?"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hf_sam.trainer.state_file import FORMAT, JSON_NAME, TENSORS_NAME, load_state, save_state
from tests.trainer.test_state_file import CONFIG, state


def cut(name: str, share: float) -> Any:
    def damage(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: int(len(content) * share)])

    return damage


def edit(**changes: Any) -> Any:
    def damage(directory: Path) -> None:
        path = directory / JSON_NAME
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    return damage


def replaced(name: str) -> Any:
    """Put a file there that another checkpoint of the same run holds."""

    def damage(directory: Path) -> None:
        other = directory / "other"
        save_state(other, CONFIG, state(), step=8)
        os.replace(other / name, directory / name)

    return damage


def text(old: str, new: str) -> Any:
    def damage(directory: Path) -> None:
        path = directory / JSON_NAME
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return damage


def write(name: str, content: bytes) -> Any:
    return lambda directory: (directory / name).write_bytes(content)


def state_tensors() -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in state().items() if isinstance(value, torch.Tensor)}


def damaged_tensors(change: Any) -> Any:
    """Change the set of tensors and leave the id."""

    def damage(directory: Path) -> None:
        tensors = state_tensors()
        change(tensors)
        save_file(
            tensors, directory / TENSORS_NAME, metadata={"id": json.loads((directory / JSON_NAME).read_text())["id"]}
        )

    return damage


DAMAGE = {
    "json cut": cut(JSON_NAME, 0.5),
    "json empty": cut(JSON_NAME, 0),
    "json is a list": write(JSON_NAME, b"[]"),
    "json is binary": write(JSON_NAME, b"\xff\xfe\x00\x81"),
    "json missing": lambda directory: (directory / JSON_NAME).unlink(),
    "json is a folder": lambda directory: [(directory / JSON_NAME).unlink(), (directory / JSON_NAME).mkdir()],
    "json is a pipe": lambda directory: [(directory / JSON_NAME).unlink(), os.mkfifo(directory / JSON_NAME)],
    "json leads nowhere": lambda directory: [
        (directory / JSON_NAME).unlink(),
        (directory / JSON_NAME).symlink_to("nowhere"),
    ],
    "json is nested deeply": write(JSON_NAME, b"[" * 100_000),
    "json has objects nested deeply": write(JSON_NAME, b'{"format":' * 100_000),
    "json is a huge number": write(JSON_NAME, b"1" * 100_000),
    "a value that is none": text('"share": 0.1', '"share": NaN'),
    "a value that is infinite": text('"share": 0.1', '"share": -Infinity'),
    "a value beyond all floats": text('"share": 0.1', '"share": 1e999'),
    "another checkpoint's json": replaced(JSON_NAME),
    "another checkpoint's tensors": replaced(TENSORS_NAME),
    "later format": edit(format=FORMAT + 1),
    "format is a list": edit(format=[FORMAT]),
    "values are a number": edit(values=1),
    "values are a list of pairs": edit(values=[["count", 7]]),
    "names without types": edit(tensors=["on"]),
    "a format of before": edit(format=3),
    "id is a number": edit(id=1),
    "no id": edit(id=...),
    "another id": edit(id="0" * 32),
    "processes are text": edit(processes="1"),
    "no format": edit(format=...),
    "no config": edit(config=...),
    "config is a number": edit(config=3),
    "no values": edit(values=...),
    "no list of tensors": edit(tensors=...),
    "tensors cut": cut(TENSORS_NAME, 0.5),
    "tensors cut in the header": cut(TENSORS_NAME, 0.01),
    "tensors empty": cut(TENSORS_NAME, 0),
    "tensors garbled": write(TENSORS_NAME, b"\x93" * 100),
    "tensors missing": lambda directory: (directory / TENSORS_NAME).unlink(),
    "tensors are a pipe": lambda directory: [(directory / TENSORS_NAME).unlink(), os.mkfifo(directory / TENSORS_NAME)],
    "tensors promise a header of 2**62 bytes": write(TENSORS_NAME, (2**62).to_bytes(8, "little") + b"{}"),
    "tensors of another program": lambda directory: save_file(state_tensors(), directory / TENSORS_NAME),
    "another tensor promised": edit(tensors={"absent": ["torch.float32", [1]]}),
    "a tensor of another type": text('"torch.bool"', '"torch.int8"'),
    "a tensor of another shape": text("        4\n", "        5\n"),
    "a tensor less": damaged_tensors(lambda tensors: tensors.pop("on")),
    "a tensor more": damaged_tensors(lambda tensors: tensors.update(more=torch.ones(1))),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_is_told_with_its_place_and_the_way_out(damage: Any, tmp_path: Path) -> None:
    save_state(tmp_path, CONFIG, state())
    damage(tmp_path)
    with pytest.raises(ValueError, match="cannot be read") as caught:
        load_state(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "Resume from another checkpoint, or delete" in str(caught.value)


@pytest.mark.parametrize("name", [JSON_NAME, TENSORS_NAME])
def test_no_cut_is_overlooked_and_no_flipped_bit_ends_in_another_error(name: str, tmp_path: Path) -> None:
    """At places all over the file. A flipped bit in a number is believed; one in the structure is refused."""
    save_state(tmp_path, CONFIG, state())
    _, expected = load_state(tmp_path)
    content, refused = (tmp_path / name).read_bytes(), 0
    generator = random.Random(0)
    for _ in range(300):
        at, flipped = generator.randrange(len(content) - 2), bytearray(content)
        flipped[at] ^= 1 << generator.randrange(8)
        (tmp_path / name).write_bytes(content[: at + 1])
        with pytest.raises(ValueError, match="cannot be read"):
            load_state(tmp_path)
        (tmp_path / name).write_bytes(bytes(flipped))
        try:
            _, read = load_state(tmp_path)
        except ValueError:
            refused += 1
        else:
            tensors = {k: (v.dtype, v.shape) for k, v in read.items() if isinstance(v, torch.Tensor)}
            assert tensors == {k: (v.dtype, v.shape) for k, v in expected.items() if isinstance(v, torch.Tensor)}
    assert refused > 100


def test_a_pickle_in_the_place_of_our_files_is_never_run(tmp_path: Path) -> None:
    """Both names, a pickle that would write a file: nothing may execute it."""

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    save_state(tmp_path, CONFIG, state())
    torch.save(Bomb(), tmp_path / TENSORS_NAME)
    with pytest.raises(ValueError, match="cannot be read"):
        load_state(tmp_path)
    torch.save(Bomb(), tmp_path / JSON_NAME)
    with pytest.raises(ValueError, match="cannot be read"):
        load_state(tmp_path)
    assert not (tmp_path / "exploded").exists()
