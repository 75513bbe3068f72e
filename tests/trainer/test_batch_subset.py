# SPDX-License-Identifier: Apache-2.0
"""Which micro-batches and rows does the ascent gradient see, and does the rest of a batch fit them?"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from transformers import BatchEncoding, BatchFeature

from hf_sam.trainer.batch_rows import Rows, UnknownRowsError
from hf_sam.trainer.batch_subset import BatchSubset, batch_subset, placeholders_of
from tests.looped import looped

FRACTIONS = [Fraction(n, d) for d in (*range(1, 13), 49, 100) for n in {1, d // 3, d // 2, d - 1, d} if 0 < n <= d]


def rows(count: int, *rest: int) -> Tensor:
    """Row i is full of i."""
    return torch.arange(count).view(-1, *[1] * len(rest)).expand(count, *rest).contiguous()


def windows(micro_batches: int, size: int) -> list[dict[str, Tensor]]:
    return [{"input_ids": rows(size, 3) + 100 * i} for i in range(micro_batches)]


def examples(portion: BatchSubset) -> list[tuple[int, int]]:
    """Return (micro-batch, row) of everything in a portion of `windows`."""
    return [divmod(int(row[0]), 100) for part in portion for row in part["input_ids"]]


def cut(batch: Mapping[str, Any], fraction: float) -> Any:
    (part,) = batch_subset([batch], fraction)
    return part


# ----------------------------------------------------------------------------------------------------------------------
# How much, and which
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 4, 7, 49])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 50])
def test_as_much_is_taken_as_was_asked_for_rounded_up_to_whole_examples(micro_batches: int, size: int) -> None:
    inputs = windows(micro_batches, size)
    for fraction in FRACTIONS:
        portion = batch_subset(inputs, float(fraction))
        if fraction * micro_batches >= 1:
            number, whole = math.ceil(fraction * micro_batches), size
        else:
            number, whole = 1, math.ceil(fraction * micro_batches * size)
        assert [len(part["input_ids"]) for part in portion] == [whole] * number, fraction
        assert portion.share == pytest.approx(number * whole / (micro_batches * size)), fraction
        assert portion.share >= fraction - 1e-9


@pytest.mark.parametrize(
    ("micro_batches", "size", "fraction", "expected"),
    [
        (1, 4, 0.25, [(0, 2)]),
        (1, 4, 0.5, [(0, 1), (0, 3)]),
        (1, 8, 0.5, [(0, 1), (0, 3), (0, 5), (0, 7)]),
        (1, 3, 1 / 3, [(0, 1)]),
        (1, 3, 2 / 3, [(0, 0), (0, 2)]),
        (1, 4, 0.75, [(0, 0), (0, 2), (0, 3)]),
        (1, 1, 0.1, [(0, 0)]),
        (4, 2, 0.5, [(1, 0), (1, 1), (3, 0), (3, 1)]),
        (4, 4, 0.125, [(2, 1), (2, 3)]),
        (3, 1, 1 / 3, [(1, 0)]),
        (2, 2, 1.0, [(0, 0), (0, 1), (1, 0), (1, 1)]),
    ],
)
def test_these_are_the_examples(
    micro_batches: int, size: int, fraction: float, expected: list[tuple[int, int]]
) -> None:
    assert examples(batch_subset(windows(micro_batches, size), fraction)) == expected


@pytest.mark.parametrize("size", [5, 16, 50])
def test_they_are_evenly_spread_and_each_is_there_once(size: int) -> None:
    """In a batch sorted by length every length is there: the gaps differ by one at most, also those at the ends."""
    for wanted in range(1, size + 1):
        chosen = [row for _, row in examples(batch_subset(windows(1, size), wanted / size))]
        assert len(chosen) == wanted
        gaps = [b - a for a, b in itertools.pairwise(chosen)]
        assert all(math.floor(size / wanted) <= gap <= math.ceil(size / wanted) for gap in gaps)
        mean = sum(chosen) / wanted
        assert abs(mean - (size - 1) / 2) <= 0.5, "the middle of them is the middle of the batch"


@pytest.mark.parametrize("count", [3, 49, 98, 103, 107])
def test_one_of_several_is_one_where_floats_are_not_exact(count: int) -> None:
    """49 * (1 / 49) is less than 1. A whole micro-batch is not cut, and needs no tensors."""
    inputs = [{"text": [str(i)]} for i in range(count)]
    portion = batch_subset(inputs, 1 / count)
    assert len(portion) == 1
    assert portion[0] is inputs[count // 2]


def test_whole_micro_batches_are_the_same_objects_and_nothing_is_changed() -> None:
    inputs = windows(4, 2)
    before = [{k: v.clone() for k, v in batch.items()} for batch in inputs]
    assert [part is inputs[i] for part, i in zip(batch_subset(inputs, 0.5), (1, 3), strict=True)] == [True, True]
    part = cut(inputs[0], 0.5)
    part["input_ids"].zero_()
    for batch, copy in zip(inputs, before, strict=True):
        assert list(batch) == list(copy)
        assert torch.equal(batch["input_ids"], copy["input_ids"])


# ----------------------------------------------------------------------------------------------------------------------
# What a batch consists of
# ----------------------------------------------------------------------------------------------------------------------
def test_what_there_is_one_of_for_all_examples_stays_whole() -> None:
    batch = {
        "input_ids": rows(4, 6),
        "labels": rows(4),
        "position_ids": rows(1, 6),
        "scale": torch.tensor(2.0),
        "empty": torch.zeros(0, 4),
        "array": numpy.arange(4),
        "number": numpy.float32(4),
        "size": torch.Size([4, 4]),
        "shape": (224, 224),
    }
    part = cut(batch, 0.5)
    assert part["labels"].tolist() == part["array"].tolist() == [1, 3]
    assert part["input_ids"][:, 0].tolist() == [1, 3]
    for name in ("position_ids", "scale", "empty", "number", "size", "shape"):
        assert part[name] is batch[name]


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict, BatchEncoding, BatchFeature])
def test_a_mapping_keeps_its_kind_and_order(kind: Any) -> None:
    part = cut(kind({"input_ids": rows(4, 2), "labels": rows(4)}), 0.5)
    assert type(part) is kind
    assert list(part) == ["input_ids", "labels"]
    assert part["labels"].tolist() == [1, 3]


def test_nested_containers_are_cut_all_the_way_down() -> None:
    """As transformers has them: an encoder's outputs, a cache as layers of keys and values."""
    layers = tuple((rows(4, 2), rows(4, 3)) for _ in range(3))
    batch = {"labels": rows(4), "encoder_outputs": (rows(4, 5), [rows(4, 1)]), "past": layers, "more": {"x": rows(4)}}
    part = cut(batch, 0.5)
    assert isinstance(part["encoder_outputs"], tuple)
    assert isinstance(part["encoder_outputs"][1], list)
    found = [part["encoder_outputs"][0], part["encoder_outputs"][1][0], part["more"]["x"], *sum(part["past"], ())]
    assert [t.view(2, -1)[:, 0].tolist() for t in found] == [[1, 3]] * 9


def test_layers_are_not_taken_for_examples() -> None:
    part = cut({"labels": rows(4), "past": tuple((rows(4), rows(4, 2)) for _ in range(2))}, 0.5)
    assert len(part["past"]) == 2
    assert all(len(t) == 2 for pair in part["past"] for t in pair)


def test_a_named_tuple_stays_one() -> None:
    Pair = namedtuple("Pair", "left right")
    part = cut({"labels": rows(4), "pair": Pair(rows(4), rows(4, 2))}, 0.5)
    assert type(part["pair"]) is Pair
    assert part["pair"].right[:, 0].tolist() == [1, 3]


def test_one_item_per_example_goes_with_its_example() -> None:
    """Texts and names, ragged lists, and what an object detector's collator makes: masks and labels by image."""
    boxes = [{"size": torch.tensor([8, 9]), "class_labels": torch.full((n,), i)} for i, n in enumerate((4, 1, 0, 2))]
    batch = {
        "pixel_values": rows(4, 1, 2, 2),
        "texts": ["a", "b", "c", "d"],
        "names": ("e", "f", "g", "h"),
        "ragged": [[1, 2, 3, 4], [5], [], [6, 7]],
        "labels": boxes,
        "mask_labels": [torch.zeros(n, 2, 2) for n in (4, 1, 3, 2)],
    }
    part = cut(batch, 0.5)
    assert (part["texts"], part["names"], part["ragged"]) == (["b", "d"], ("f", "h"), [[5], [6, 7]])
    assert [label is boxes[i] for label, i in zip(part["labels"], (1, 3), strict=True)] == [True, True]
    assert [len(mask) for mask in part["mask_labels"]] == [1, 2]


def test_two_images_with_labels_are_not_taken_for_rows() -> None:
    boxes = [{"size": torch.tensor([8, 9]), "class_labels": torch.zeros(1), "boxes": torch.zeros(1, 4)}] * 2
    assert len(cut({"pixel_values": rows(2, 3), "labels": boxes}, 0.5)["labels"]) == 1


def test_what_has_no_rows_stays() -> None:
    batch = {"input_ids": rows(4, 2), "return_loss": True, "names": [], "nothing": None, "kind": "text", "most": 4}
    part = cut(batch, 0.5)
    assert {k: v for k, v in part.items() if k != "input_ids"} == {k: v for k, v in batch.items() if k != "input_ids"}


def test_a_batch_of_one_is_taken_whole() -> None:
    batch = {"input_ids": rows(1, 6), "position_ids": rows(1, 6), "texts": ["a"], "lengths": torch.tensor([2, 4])}
    portion = batch_subset([batch, batch], 0.01)
    assert portion.share == 0.5
    assert {k: torch.as_tensor(v).tolist() for k, v in portion[0].items() if k != "texts"} == {
        k: v.tolist() for k, v in batch.items() if k != "texts"
    }
    assert portion[0]["texts"] == ["a"]


# ----------------------------------------------------------------------------------------------------------------------
# What is not certain
# ----------------------------------------------------------------------------------------------------------------------
class Graph:
    """An object that holds the examples, as a batch of graphs is."""

    x = rows(8)


PATCHES = {"pixel_values": rows(64, 6), "image_grid_thw": rows(4, 3)}
BATCHES: dict[str, tuple[dict[str, Any], str]] = {
    "patches of images": ({"input_ids": rows(4, 9), **PATCHES}, "4 in 'input_ids', 64 in 'pixel_values'"),
    "as many patches as texts": ({"input_ids": rows(4), "image_grid_thw": rows(4, 3)}, "'image_grid_thw' says"),
    "graphs": ({"x": rows(9, 4), "edge_index": rows(2, 12), "labels": rows(4)}, "different numbers of rows"),
    "two graphs of a node": ({"x": rows(2), "edge_index": rows(2, 2), "labels": rows(2)}, "'edge_index' says"),
    "an object": ({"graph": Graph(), "labels": rows(4)}, "'graph' is a Graph"),
    "a flattened list": ({"labels": rows(4), "texts": list("abcdefgh")}, "'texts' has 8 items for 4 examples"),
    "packed sequences": ({"input_ids": rows(2, 9), "cu_seq_lens_q": rows(2)}, "'cu_seq_lens_q' says"),
    "a mask for all": ({"input_ids": rows(4, 6), "mask": rows(6, 6)}, "4 in 'input_ids', 6 in 'mask'"),
    "pairs": ({"input_ids": rows(8, 6), "labels": rows(4)}, "4 in 'labels', 8 in 'input_ids'"),
    "weights of classes": ({"x": rows(3), "class_weights": rows(3)}, "'class_weights' may have a row for each class"),
    "layers or masks": ({"x": rows(2), "masks": [rows(2, 8), rows(2, 8)]}, "'masks' may be one item for each"),
    "a shape or labels": ({"x": rows(2), "size": (224, 224)}, "'size' may be one item for each"),
    "three positions": ({"x": rows(3), "position_ids": rows(3, 3, 9)}, "first dimension of 'position_ids'"),
    "nested": ({"labels": rows(4), "more": {"deep": [rows(5)]}}, "'deep' has 1 items for 4 examples"),
    "choices of one question": ({"input_ids": rows(4, 6), "labels": rows(1)}, "1 in 'labels', 4 in 'input_ids'"),
    "lengths": ({"x": rows(1, 6), "lengths": rows(2)}, "1 in 'x', 2 in 'lengths'"),
    "sparse": ({"labels": rows(4), "x": torch.eye(4).to_sparse()}, "sparse or nested"),
    "texts alone": ({"text": ["a", "b"], "kind": 1}, "no tensor that says how many"),
    "a number alone": ({"scale": torch.tensor(1.0)}, "no tensor that says how many"),
    "nothing": ({}, "no tensor that says how many"),
}


@looped
@pytest.mark.parametrize("name", BATCHES)
def test_what_is_not_certain_is_refused_with_the_way_out(name: str) -> None:
    batch, reason = BATCHES[name]
    with pytest.raises(UnknownRowsError) as caught:
        batch_subset([batch], 0.5)
    message = str(caught.value)
    assert reason in message
    assert message.startswith("`SAMConfig(ascent_fraction=...)` below 1 has to cut a batch, and ")
    assert "Leave ascent_fraction=1, or take whole micro-batches" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", BATCHES)
def test_whole_micro_batches_of_it_are_taken_as_they_are(name: str) -> None:
    batch, _ = BATCHES[name]
    (part,) = batch_subset([batch, batch], 0.5)
    assert part is batch


def test_one_example_that_cannot_be_cut_is_taken_whole() -> None:
    """As a collator without padding makes it: all texts in one row."""
    batch = {"input_ids": rows(1, 30), "position_ids": rows(1, 30), "max_length_q": 9}
    assert batch_subset([batch], 0.5).share == 1


def test_images_in_texts_are_cut_where_each_has_one() -> None:
    class Model:
        config = type("Config", (), {"image_token_id": 7, "video_token_id": None, "audio_token_index": 9})()

    tokens = placeholders_of(Model())
    assert tokens == [7, 9]
    ids = torch.tensor([[7, 7, 1], [1, 7, 7], [7, 1, 7], [7, 7, 2]])
    part, _ = batch_subset([{"input_ids": ids, "pixel_values": rows(4, 3)}], 0.5, 1, tokens), None
    assert part[0]["pixel_values"][:, 0].tolist() == [1, 3]
    uneven = {"input_ids": ids.clone(), "pixel_values": rows(4, 3)}
    uneven["input_ids"][1] = 1
    with pytest.raises(UnknownRowsError, match="different numbers of the images or sounds in 'pixel_values'"):
        batch_subset([uneven], 0.5, 1, tokens)
    assert len(batch_subset([{"input_ids": uneven["input_ids"]}], 0.5, 1, tokens)[0]["input_ids"]) == 2


# ----------------------------------------------------------------------------------------------------------------------
# Rows that belong together
# ----------------------------------------------------------------------------------------------------------------------
@looped
@pytest.mark.parametrize(("size", "fraction", "expected"), [(2, 0.5, [2, 3, 6, 7]), (4, 0.5, [4, 5, 6, 7])])
def test_rows_of_a_group_stay_together(size: int, fraction: float, expected: list[int]) -> None:
    groups = 8 // size
    batch = {"input_ids": rows(8, 5), "labels": rows(groups), "texts": list("abcdefgh"), "of_group": rows(groups, 2)}
    subset = batch_subset([batch], fraction, size)
    assert subset.share == fraction
    assert subset[0]["input_ids"][:, 0].tolist() == expected
    assert subset[0]["texts"] == ["abcdefgh"[i] for i in expected]
    assert subset[0]["labels"].tolist() == sorted({row // size for row in expected})


@pytest.mark.parametrize("batch", [{"x": rows(9)}, {"x": rows(8), "labels": rows(2)}, {"x": rows(8), "y": rows(16)}])
def test_rows_that_make_no_groups_are_refused(batch: dict[str, Any]) -> None:
    if len(batch.get("y", ())) == 16:
        assert Rows(batch, 2).examples == 8
        return
    with pytest.raises(UnknownRowsError, match=r"no multiple of ascent_group_size=4|different numbers of rows"):
        batch_subset([batch], 0.5, 4 if len(batch) == 1 else 2)
