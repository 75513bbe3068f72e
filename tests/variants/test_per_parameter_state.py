# SPDX-License-Identifier: Apache-2.0
"""Does a variant's state find its parameter again: in the next step, and after a resume?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_sam.variants.per_parameter_state import PerParameterState
from tests.compare import bits, same_bits
from tests.looped import looped

SHAPES = {"a.weight": (3, 2), "a.bias": (3,), "b.weight": (2, 3)}


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.zeros(shape, dtype=dtype)) for name, shape in SHAPES.items()}


def filled(params: dict[str, nn.Parameter], named: bool = True) -> PerParameterState:
    kept = PerParameterState("mean")
    if named:
        kept.prepare(params.items())
    for i, tensor in enumerate(kept.of(list(params.values()))):
        tensor.copy_(torch.arange(tensor.numel()).view_as(tensor) + 10.0 * i)
    return kept


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return same_bits(bits(left), bits(right))


def test_it_starts_at_zero_and_stays_with_the_parameter() -> None:
    params = list(parameters().values())
    kept = PerParameterState("mean")
    kept.of(params[1:])[0].fill_(5)
    first, second, _ = kept.of(params)
    assert not first.any()
    assert (second == 5).all()
    assert kept.of(params)[0] is first


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_it_keeps_at_least_32_bits_in_the_layout_of_the_parameter(dtype: torch.dtype, expected: torch.dtype) -> None:
    p = nn.Parameter(torch.zeros(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last))
    kept = PerParameterState("mean")
    (tensor,) = kept.of([p])
    assert (tensor.dtype, tensor.shape, tensor.stride()) == (expected, p.shape, p.stride())
    tensor.copy_(torch.randn(2, 3, 4, 5))
    again = PerParameterState("mean")
    again.load_state_dict({k: v.contiguous() for k, v in kept.state_dict().items()})
    assert again.of([p])[0].stride() == p.stride()
    assert torch.equal(again.of([p])[0], tensor)


def test_names_are_keys_and_so_is_the_order_of_those_without() -> None:
    params = parameters()
    assert list(filled(params).state_dict()) == [f"mean.{name}" for name in SHAPES]
    kept = PerParameterState("mean")
    kept.prepare([("a.weight", params["a.weight"]), ("also.a.weight", params["a.weight"])])  # tied
    kept.of([params["b.weight"], params["a.weight"], params["a.bias"]])
    assert list(kept.state_dict()) == ["mean#0", "mean.a.weight", "mean#1"]


@pytest.mark.parametrize("when", ["before prepare", "after prepare", "after use"])
def test_what_is_loaded_reaches_its_parameter(when: str) -> None:
    state, params, kept = filled(parameters()).state_dict(), parameters(), PerParameterState("mean")
    if when == "before prepare":
        kept.load_state_dict(state)
    kept.prepare(params.items())
    if when == "after use":
        kept.of(list(params.values()))[0].fill_(7)
    if when != "before prepare":
        kept.load_state_dict(state)
    backwards = list(reversed(params.items()))
    assert same(kept.of([p for _, p in backwards]), [state[f"mean.{name}"] for name, _ in backwards])


def test_what_is_loaded_without_names_goes_by_order() -> None:
    state, kept = filled(parameters(), named=False).state_dict(), PerParameterState("mean")
    kept.load_state_dict(state)
    assert same(kept.of(list(parameters().values())), list(state.values()))


def test_what_was_not_asked_for_is_saved_again() -> None:
    state, params, kept = filled(parameters()).state_dict(), parameters(), PerParameterState("mean")
    kept.load_state_dict(state)
    kept.prepare(params.items())
    kept.of([params["a.bias"]])[0].fill_(1)
    again = kept.state_dict()
    assert set(again) == set(state)
    assert (again["mean.a.bias"] == 1).all()
    assert same([again["mean.b.weight"]], [state["mean.b.weight"]])


def test_what_is_loaded_is_copied() -> None:
    state, kept = filled(parameters(), named=False).state_dict(), PerParameterState("mean")
    before = {name: tensor.clone() for name, tensor in state.items()}
    kept.load_state_dict(state)
    for tensor in kept.of(list(parameters().values())):
        tensor.zero_()
    assert same(list(state.values()), list(before.values()))


# ----------------------------------------------------------------------------------------------------------------------
# A checkpoint may come from anybody
# ----------------------------------------------------------------------------------------------------------------------
BAD: list[tuple[Any, Any, str]] = [
    ("median.a.bias", torch.zeros(3), r"the state's 'median\.a\.bias' is nothing that this variant keeps"),
    ("mean", torch.zeros(3), r"the state's 'mean' is nothing that this variant keeps"),
    ("mean#x", torch.zeros(3), r"the state's 'mean#x' is nothing that this variant keeps"),
    ("mean#1\n", torch.zeros(3), r"is nothing that this variant keeps"),
    ("mean.c", torch.zeros(3), r"'mean\.c' belongs to no parameter of this model"),
    ("mean.a.bias", 1.5, r"'mean\.a\.bias' must be a tensor of float32 or float64, got float"),
    ("mean.a.bias", torch.zeros(3, dtype=torch.int64), r"must be a tensor of float32 or float64, got torch\.int64"),
    ("mean.a.bias", torch.full((3,), torch.nan), r"'mean\.a\.bias' has values that are not finite"),
]


@looped
@pytest.mark.parametrize(("key", "value", "message"), BAD, ids=[str(b[0]) + " " + str(type(b[1])) for b in BAD])
def test_what_is_no_such_state_is_refused_and_nothing_changes(key: Any, value: Any, message: str) -> None:
    kept = filled(parameters())
    before = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        kept.load_state_dict({"mean.a.weight": torch.ones(3, 2), key: value})
    assert list(kept.state_dict()) == list(before)
    assert same(list(kept.state_dict().values()), list(before.values()))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            torch.ones(4),
            r"'mean\.a\.bias' has shape \(4,\) and torch\.float32, the parameter takes \(3,\) and torch\.flo",
        ),
        (torch.ones(3, 1), r"has shape \(3, 1\)"),
        (torch.ones(()), r"has shape \(\)"),
        (torch.ones(3, dtype=torch.float64), r"torch\.float64, the parameter takes \(3,\) and torch\.float32"),
    ],
    ids=str,
)
def test_another_shape_or_dtype_is_refused_at_first_use(value: Tensor, message: str) -> None:
    params, kept = parameters(), PerParameterState("mean")
    kept.prepare(params.items())
    kept.load_state_dict({"mean.a.bias": value})
    with pytest.raises(ValueError, match=message):
        kept.of(list(params.values()))


def test_an_unknown_name_is_refused_when_the_names_are_learned_later() -> None:
    kept = PerParameterState("mean")
    kept.load_state_dict({"mean.c": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"'mean\.c' belongs to no parameter"):
        kept.prepare(parameters().items())


@pytest.mark.parametrize("named", [True, False])
def test_names_on_one_side_only_are_refused(named: bool) -> None:
    params, kept = parameters(), PerParameterState("mean")
    kept.load_state_dict(filled(parameters(), named).state_dict())
    if not named:
        kept.prepare(params.items())
    with pytest.raises(ValueError, match=r"pass `model\.named_parameters\(\)`"):
        kept.of(list(params.values()))
