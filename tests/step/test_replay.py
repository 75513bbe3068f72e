# SPDX-License-Identifier: Apache-2.0
"""Do random streams and buffers go back to where they were?"""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_sam.step.left_alone import root_of
from hf_sam.step.reach import Reach
from hf_sam.step.replay import ChangedState, RandomState, devices_of
from tests.compare import bits, same_bits

DRAWS = {
    "torch": lambda: torch.randn(3).tolist(),
    "torch.randint": lambda: torch.randint(0, 100, (3,)).tolist(),
    "numpy": lambda: np.random.normal(size=3).tolist(),
    "python": lambda: [random.random() for _ in range(3)],
    "python gauss": lambda: [random.gauss(0, 1) for _ in range(3)],
}
CPU = [torch.device("cpu")]


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_restored_stream_repeats_itself(draw: object) -> None:
    state = RandomState(CPU)
    first = draw()
    assert draw() != first
    state.restore()
    assert draw() == first


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_state_can_be_restored_more_than_once(draw: object) -> None:
    state = RandomState(CPU)
    first = draw()
    for _ in range(2):
        state.restore()
        assert draw() == first


def test_an_odd_number_of_normal_draws_is_restored_too() -> None:
    """NumPy and Python draw normals in pairs and keep the second one."""
    np.random.normal()
    random.gauss(0, 1)
    state = RandomState(CPU)
    first = (np.random.normal(), random.gauss(0, 1))
    state.restore()
    assert (np.random.normal(), random.gauss(0, 1)) == first


def test_capturing_draws_nothing() -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    RandomState(CPU)
    assert torch.equal(torch.randn(3), expected)


def test_numpy_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "numpy")
    state = RandomState(CPU)
    first = DRAWS["torch"]()
    state.restore()
    assert DRAWS["torch"]() == first
    assert "numpy" not in sys.modules


@pytest.mark.gpu
def test_the_stream_of_a_gpu_is_restored() -> None:
    state = RandomState([torch.device("cuda", 0)])
    first = torch.rand(3, device="cuda")
    state.restore()
    assert torch.equal(torch.rand(3, device="cuda"), first)


def test_devices_are_listed_once_in_order() -> None:
    tensors = [torch.ones(1, device="meta"), torch.ones(1), torch.ones(2, device="meta")]
    assert devices_of(tensors) == [torch.device("meta"), torch.device("cpu")]


# ----------------------------------------------------------------------------------------------------------------------
# Buffers
# ----------------------------------------------------------------------------------------------------------------------
class BufferState:
    """The state of a model before a pass, to which it can be put back."""

    def __init__(self, model: nn.Module) -> None:
        def find() -> Reach:
            reach = Reach()
            reach.visit(model, "model")
            return reach

        self.start = ChangedState(find, lambda: 2**20).now()

    def restore(self) -> None:
        with self.start.again(stays=True, ends=False):
            pass


class Holder(nn.Module):
    """A module with the given buffers, one of them not saved in checkpoints."""

    def __init__(self, **buffers: Tensor | None) -> None:
        super().__init__()
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=name != "fleeting")


def test_batch_norm_buffers_come_back_to_the_bit() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model(torch.randn(8, 4))
    before = bits(model.buffers())
    state = BufferState(model)
    model(torch.randn(8, 4))
    assert not same_bits(bits(model.buffers()), before)
    state.restore()
    assert same_bits(bits(model.buffers()), before)


def test_buffers_come_back_in_place() -> None:
    model = nn.BatchNorm1d(4)
    objects = [(id(b), b.data_ptr()) for b in model.buffers()]
    state = BufferState(model)
    model(torch.randn(8, 4))
    state.restore()
    assert [(id(b), b.data_ptr()) for b in model.buffers()] == objects


@pytest.mark.parametrize("name", ["saved", "fleeting"])
def test_a_buffer_bound_to_a_new_tensor_is_bound_back(name: str) -> None:
    model = Holder(saved=torch.ones(3), fleeting=torch.ones(3))
    original = getattr(model, name)
    state = BufferState(model)
    original.add_(1)
    setattr(model, name, torch.zeros(5))
    state.restore()
    assert getattr(model, name) is original
    assert torch.equal(original, torch.ones(3))


def test_a_buffer_that_was_none_becomes_none_again() -> None:
    model = Holder(cache=None)
    state = BufferState(model)
    model.cache = torch.ones(3)
    state.restore()
    assert model.cache is None


def test_a_buffer_set_to_none_comes_back() -> None:
    model = Holder(cache=torch.ones(3))
    original = model.cache
    state = BufferState(model)
    model.cache = None
    state.restore()
    assert model.cache is original


def test_a_buffer_shared_by_two_modules_comes_back_and_stays_shared() -> None:
    shared = torch.ones(3)
    model = nn.ModuleList([Holder(a=shared), Holder(b=shared)])
    state = BufferState(model)
    model[0].a.add_(1)
    state.restore()
    assert model[0].a is model[1].b
    assert torch.equal(shared, torch.ones(3))


def test_a_module_used_twice_is_no_trouble() -> None:
    inner = Holder(count=torch.tensor(1))
    model = nn.ModuleList([inner, inner])
    state = BufferState(model)
    inner.count += 1
    state.restore()
    assert inner.count == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_buffers_of_every_dtype_come_back(dtype: torch.dtype) -> None:
    model = Holder(value=torch.ones(3).to(dtype))
    state = BufferState(model)
    model.value.zero_()
    state.restore()
    assert torch.equal(model.value, torch.ones(3).to(dtype))


def test_an_expanded_buffer_is_no_trouble() -> None:
    model = Holder(mask=torch.zeros(1).expand(2, 3))
    BufferState(model).restore()
    assert torch.equal(model.mask, torch.zeros(2, 3))


def test_a_buffer_that_wants_a_gradient_is_no_trouble() -> None:
    model = Holder(value=torch.ones(3, requires_grad=True))
    state = BufferState(model)
    with torch.no_grad():
        model.value.zero_()
    state.restore()
    assert torch.equal(model.value, torch.ones(3))


def test_the_copies_survive_changes_of_the_model() -> None:
    model = Holder(value=torch.ones(3))
    state = BufferState(model)
    for _ in range(3):
        model.value.add_(1)
        state.restore()
        assert torch.equal(model.value, torch.ones(3))


def test_a_class_whose_module_is_no_name_belongs_to_no_library() -> None:
    """NumPy's older generators say so on Python 3.10: what stands there is a slot."""
    assert root_of(object()) == ""
    assert (root_of("torch.nn.modules"), root_of(None)) == ("torch", "")
