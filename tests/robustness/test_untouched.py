# SPDX-License-Identifier: Apache-2.0
"""Is a model after a measurement what it was before, to the bit and to the object, whatever happened in it?"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from hf_sam.robustness import RobustnessAnalyzer, compare
from tests.covering import covering
from tests.robustness.data import small
from tests.sharpness.test_untouched import in_training, state, streams

MEASURES: dict[str, Callable[[RobustnessAnalyzer, nn.Module], Any]] = {
    "as_trained": lambda one, model: one.as_trained(),
    "dynamic": lambda one, model: one.quantised(dynamic=True),
    "int4": lambda one, model: one.quantised(4),
    "pruned": lambda one, model: one.pruned(0.5),
    "merged": lambda one, model: one.merged([copy.deepcopy(model)], origin=copy.deepcopy(model), alpha=0.3),
    "on": lambda one, model: one.on(one.examples.rows[:3], "three"),
}
FAMILIES = ("bert", "gpt2", "vit", "resnet")


def prepared(family: str) -> tuple[nn.Module, Any]:
    model, examples = small(family)
    return in_training(model), examples


@pytest.mark.parametrize(
    ("family", "measure"),
    covering(
        product(FAMILIES, MEASURES),
        fast=[("vit", "dynamic"), ("resnet", "merged"), ("gpt2", "int4"), ("bert", "on")],
        slow=list(product(FAMILIES, MEASURES)),
    ),
)
def test_nothing_changes(family: str, measure: str) -> None:
    model, examples = prepared(family)
    torch.rand(3)
    before, drawn = state(model), streams()
    one = RobustnessAnalyzer(model, examples, batch_size=4)
    assert MEASURES[measure](one, model).scores
    assert state(model) == before
    assert streams() == drawn


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("measure", ["dynamic", "int4", "merged"])
def test_nor_when_it_ends_in_the_middle(measure: str, error: type[BaseException]) -> None:
    model, examples = prepared("vit")
    layer = next(module for module in model.modules() if isinstance(module, nn.Linear))
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        torch.rand(2)
        if len(calls) == 2:
            raise error("here")

    handle = layer.register_forward_pre_hook(fail)
    one = RobustnessAnalyzer(model, examples, batch_size=4)
    before, drawn = state(model), streams()
    with pytest.raises(error, match="here"):
        MEASURES[measure](one, model)
    assert state(model) == before
    assert streams() == drawn
    handle.remove()
    # The next measurement is that of a model that nothing had happened to.
    calls += [1] * 9
    assert one.as_trained().scores == RobustnessAnalyzer(model, examples, batch_size=4).as_trained().scores


@pytest.mark.slow
def test_conditions_leave_no_trace_in_each_other() -> None:
    model, examples = small("vit")
    one = RobustnessAnalyzer(model, examples)
    before = one.as_trained().scores
    for measure in MEASURES.values():
        measure(one, model)
    assert one.as_trained().scores == before
    assert one.quantised(4).scores == RobustnessAnalyzer(model, examples).quantised(4).scores


@pytest.mark.slow
def test_statistics_of_batch_normalisation_stay() -> None:
    model, examples = small("resnet")
    model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    compare({"a": model, "b": copy.deepcopy(model)}, examples, folds=2, conditions={"shares": (0.5,), "bits": (4,)})
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert model.training


def test_a_data_set_and_a_collator_that_draw_leave_the_streams() -> None:
    model, examples = small("vit")

    class Noisy(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> dict[str, Any]:
            return {"pixel_values": examples[i]["pixel_values"] + torch.rand(()), "labels": i % 3}

    drawn = streams()
    found = [RobustnessAnalyzer(model, Noisy()).pruned(0.5).scores for _ in range(2)]
    assert found[0] == found[1]
    assert streams() == drawn


def test_a_model_that_was_trained_on_is_not_measured_as_it_was() -> None:
    model, examples = prepared("bert")
    one = RobustnessAnalyzer(model, examples, batch_size=4)
    one.as_trained()
    last = list(model.parameters())[-1]
    torch.optim.SGD([last], lr=0.1).step()
    with pytest.raises(RuntimeError, match=r"have changed since this analyzer was made.* make a new one"):
        one.quantised(4)
    RobustnessAnalyzer(model, examples, batch_size=4).quantised(4)
