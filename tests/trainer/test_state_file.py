# SPDX-License-Identifier: Apache-2.0
"""Does our part of a checkpoint come back exactly, also after a crash while it was written?"""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_sam import SAMConfig, SAMTrainingArguments
from hf_sam.trainer.state_file import JSON_NAME, TENSORS_NAME, load_state, save_state
from tests.compare import bits, same_bits

SETTINGS = {
    "rho": 0.3,
    "sam_variant": "asam",
    "sam_variant_kwargs": {"eta": 0.5},
    "sam_scope": "device",
    "sam_rounding": "stochastic",
}
CONFIG = SAMConfig(**SETTINGS)
WRITTEN = asdict(CONFIG)


def state() -> dict[str, Any]:
    return {
        "momentum.0": torch.randn(3, 4),
        "momentum.1": torch.randn(5, dtype=torch.float64).bfloat16(),
        "strided": torch.randn(4, 6).t()[::2],
        "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "on": torch.tensor(True),
        "count": 7,
        "share": 0.1,
        "mode": "climbing",
        "ready": False,
    }


# ----------------------------------------------------------------------------------------------------------------------
# Round trip
# ----------------------------------------------------------------------------------------------------------------------
def test_everything_comes_back_to_the_bit(tmp_path: Path) -> None:
    written = state()
    save_state(tmp_path, CONFIG, written)
    config, read = load_state(tmp_path)
    assert config == WRITTEN
    assert read.keys() == written.keys()
    tensors = [k for k, v in written.items() if isinstance(v, torch.Tensor)]
    assert same_bits(bits(read[k] for k in tensors), bits(written[k] for k in tensors))
    assert [(read[k].dtype, read[k].shape) for k in tensors] == [(written[k].dtype, written[k].shape) for k in tensors]
    assert all(read[k] == v and type(read[k]) is type(v) for k, v in written.items() if k not in tensors)


def test_a_stateless_variant_leaves_one_small_json(tmp_path: Path) -> None:
    save_state(tmp_path, CONFIG, {})
    assert [p.name for p in tmp_path.iterdir()] == [JSON_NAME]
    assert load_state(tmp_path) == (WRITTEN, {})


def test_a_directory_without_our_files_holds_no_state(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    assert load_state(tmp_path / "absent") is None


def test_the_directory_is_made(tmp_path: Path) -> None:
    save_state(tmp_path / "a" / "b", CONFIG, {})
    assert load_state(str(tmp_path / "a" / "b")) is not None


def test_only_sams_settings_are_written(tmp_path: Path) -> None:
    args = SAMTrainingArguments(str(tmp_path / "out"), use_cpu=True, hub_token="hf_secret", **SETTINGS)
    save_state(tmp_path, args, {})
    assert load_state(tmp_path) == (WRITTEN, {})


def test_the_files_are_ordinary_json_and_safetensors(tmp_path: Path) -> None:
    save_state(tmp_path, CONFIG, state())
    assert sorted(p.name for p in tmp_path.iterdir()) == [JSON_NAME, TENSORS_NAME]
    assert json.loads((tmp_path / JSON_NAME).read_text())["values"]["count"] == 7
    assert torch.equal(load_file(tmp_path / TENSORS_NAME)["on"], torch.tensor(True))


def test_tensors_of_the_running_variant_are_not_tied_to_the_file(tmp_path: Path) -> None:
    written = {"m": torch.ones(3)}
    save_state(tmp_path, CONFIG, written)
    written["m"].zero_()
    assert torch.equal(load_state(tmp_path)[1]["m"], torch.ones(3))


def test_two_tensors_of_one_memory_are_written(tmp_path: Path) -> None:
    flat = torch.arange(6.0)
    save_state(tmp_path, CONFIG, {"first": flat[:3], "all": flat})
    assert torch.equal(load_state(tmp_path)[1]["first"], torch.tensor([0.0, 1.0, 2.0]))


def test_a_state_without_tensors_replaces_one_with_tensors(tmp_path: Path) -> None:
    save_state(tmp_path, CONFIG, state())
    save_state(tmp_path, CONFIG, {"count": 8})
    assert load_state(tmp_path)[1] == {"count": 8}


# ----------------------------------------------------------------------------------------------------------------------
# A crash while writing
# ----------------------------------------------------------------------------------------------------------------------
class Crash(Exception):
    """The power went."""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_crash_leaves_no_half_file_under_a_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    done = []

    def replace(source: Any, target: Any) -> None:
        if len(done) == renames:
            raise Crash
        done.append(target)
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Crash):
        save_state(tmp_path, CONFIG, state())
    if renames:  # tensors alone: the one file that is there must not be taken for a checkpoint without a state
        with pytest.raises(ValueError, match=r"sam_state\.json is missing"):
            load_state(tmp_path)
    else:
        assert load_state(tmp_path) is None
    visible = [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")]
    assert visible == [TENSORS_NAME][:renames]


def test_a_crash_while_overwriting_does_not_mix_old_and_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, CONFIG, {"count": 1, "m": torch.ones(3)})
    rename, done = os.replace, []

    def replace(source: Any, target: Any) -> None:
        if done:
            raise Crash
        done.append(rename(source, target))

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Crash):
        save_state(tmp_path, CONFIG, {"count": 2, "m": torch.full((3,), 2.0)})
    with pytest.raises(ValueError, match="is not the one that"):
        load_state(tmp_path)


def test_a_value_that_json_cannot_hold_leaves_the_old_state(tmp_path: Path) -> None:
    save_state(tmp_path, CONFIG, {"count": 1})
    with pytest.raises(TypeError):
        save_state(tmp_path, CONFIG, {"count": object(), "m": torch.ones(1)})
    with pytest.raises(ValueError, match=r"cannot be saved .*in a tensor only.*nan"):
        save_state(tmp_path, CONFIG, {"count": float("nan"), "m": torch.ones(1)})
    assert load_state(tmp_path)[1] == {"count": 1}
    assert [p.name for p in tmp_path.iterdir()] == [JSON_NAME]


def test_writing_draws_from_no_random_stream(tmp_path: Path) -> None:
    before = random.getstate(), torch.get_rng_state()
    save_state(tmp_path, CONFIG, {"m": torch.ones(1)})
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


# ----------------------------------------------------------------------------------------------------------------------
# Links
# ----------------------------------------------------------------------------------------------------------------------
def test_a_link_in_the_place_of_a_file_to_be_written_is_not_followed(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("precious")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for name in (JSON_NAME, TENSORS_NAME, f".{JSON_NAME}.unfinished", f".{TENSORS_NAME}.unfinished"):
        (checkpoint / name).symlink_to(mine)
    save_state(checkpoint, CONFIG, state())
    assert mine.read_text() == "precious"
    assert load_state(checkpoint)[1]["count"] == 7
    assert sorted(p.name for p in checkpoint.iterdir()) == [JSON_NAME, TENSORS_NAME]


def test_a_state_that_is_linked_is_read(tmp_path: Path) -> None:
    """A snapshot in the Hub's cache is made of links."""
    save_state(tmp_path / "blobs", CONFIG, state())
    (tmp_path / "snapshot").mkdir()
    for name in (JSON_NAME, TENSORS_NAME):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    assert load_state(tmp_path / "snapshot")[1]["count"] == 7


def test_the_same_state_makes_the_same_bytes_and_another_step_others(tmp_path: Path) -> None:
    kept = state()
    for name, step in (("one", 3), ("two", 3), ("other", 4)):
        save_state(tmp_path / name, CONFIG, kept, step=step)
    for file in (JSON_NAME, TENSORS_NAME):
        one, two, other = ((tmp_path / name / file).read_bytes() for name in ("one", "two", "other"))
        assert one == two != other
