# SPDX-License-Identifier: Apache-2.0
"""Does a copy share what the original shares, keep what it holds, and stay clear of the original?"""

from __future__ import annotations

import functools
import random
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from hf_sam.rho_search.object_copy import ObjectCopy
from hf_sam.rho_search.trainer_copy import random_streams
from tests.compare import bits, same_bits


def copied(x: Any, **replaced: Any) -> Any:
    return ObjectCopy(random_streams(), (), (torch.optim.Optimizer,), {id(x): replaced})(x)


Pair = namedtuple("Pair", "left right")


@dataclass
class Node:
    value: Any = None
    others: list[Any] = field(default_factory=list)


class Slots:
    __slots__ = ("a",)


def test_containers_and_objects_are_copied_with_what_they_share() -> None:
    shared = [1]
    node = Node(shared, [shared, {"x": (shared, 2)}, Pair(shared, 3), deque([shared], maxlen=2), {4}, OrderedDict(a=1)])
    node.others += [node, defaultdict(list, {"k": shared}), np.arange(3), slice(1), Slots()]
    node.others[-1].a = shared
    again = copied(node)
    value = again.value
    assert value == [1]
    assert value is not shared
    *_, loop, table, array, _, slots = again.others
    inside = (again.others[0], again.others[1]["x"][0], again.others[2].left, again.others[3][0], table["k"], slots.a)
    assert all(x is value for x in inside)
    assert loop is again
    assert (again.others[3].maxlen, again.others[4], again.others[5]) == (2, {4}, OrderedDict(a=1))
    assert table.default_factory is list
    array += 1
    assert node.others[8].tolist() == [0, 1, 2]


def test_what_cannot_change_is_not_copied() -> None:
    for x in ((1, "a", None), torch.float32, len, functools.lru_cache, torch, 1.5, frozenset({1})):
        assert copied(x) == x
    constants = (1, ("a", None))
    assert copied(constants) is constants


def test_tied_weights_and_views_share_memory_and_the_attributes_and_gradients_stay() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    flat = torch.zeros(12)
    model["a"].view = nn.Parameter(flat[:6])
    model["a"].register_buffer("rest", flat[3:])
    model["a"].weight.tag = "mine"
    model["a"].weight.grad = torch.ones(3, 3)
    model["a"].bias.requires_grad_(False)
    again = copied(model)
    assert again["a"].weight is again["b"].weight
    assert again["a"].weight is not model["a"].weight
    assert same_bits(bits(again.parameters()), bits(model.parameters()))
    assert (again["a"].weight.tag, again["a"].weight.grad.sum().item()) == ("mine", 9)
    assert (again["a"].bias.requires_grad, again["b"].bias.requires_grad) == (False, True)
    assert isinstance(again["a"].view, nn.Parameter)
    with torch.no_grad():
        again["a"].view.fill_(1)
    assert again["a"].rest.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert flat.sum() == 0


def test_the_result_of_a_graph_is_copied_without_it() -> None:
    w = torch.ones(2, requires_grad=True)
    kept = {"last": w * 3, "w": w}
    again = copied(kept)
    assert again["last"].tolist() == [3, 3]
    assert again["last"].grad_fn is None
    assert again["w"].requires_grad


def test_hooks_of_a_weight_act_on_its_copy() -> None:
    w = nn.Parameter(torch.ones(2))
    w.register_hook(lambda grad: grad * 5)
    w.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", p.grad + w.detach()))
    again = copied(w)
    with torch.no_grad():
        again.fill_(2)
    again.sum().backward()
    assert again.grad.tolist() == [7, 7]
    assert w.grad is None


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.LBFGS])
def test_an_optimizer_with_a_schedule_steps_the_copies(optimizer: Any) -> None:
    model = nn.Linear(2, 1)
    parts = {"model": model, "optimizer": optimizer(model.parameters(), lr=0.1)}
    parts["schedule"] = LambdaLR(parts["optimizer"], lambda step: 1 / (1 + step))

    def steps(parts: dict[str, Any]) -> list[Tensor]:
        def loss() -> Tensor:
            parts["optimizer"].zero_grad()
            value = parts["model"](torch.ones(1, 2)).square().sum()
            value.backward()
            return value

        for _ in range(2):
            parts["optimizer"].step(loss)
            parts["schedule"].step()
        return [p.detach().clone() for p in parts["model"].parameters()]

    steps(parts)
    before = bits(model.parameters())
    again = copied(parts)
    found = steps(again)
    assert same_bits(bits(model.parameters()), before)
    assert parts["optimizer"].param_groups[0]["lr"] != again["optimizer"].param_groups[0]["lr"]
    assert same_bits(bits(found), bits(steps(parts)))
    assert not same_bits(bits(found), before)


def test_functions_are_bound_to_the_copies_and_only_where_they_close_over_one() -> None:
    model, counted = nn.Linear(2, 2), []

    def run() -> tuple[Any, Any]:
        counted.append(1)
        return model, run

    def by_default(x: Any = model, *, again: Any = run) -> tuple[Any, Any]:
        """Say."""
        return x, again

    run.mark = "kept"  # type: ignore[attr-defined]
    parts = {
        "model": model,
        "run": run,
        "default": by_default,
        "partial": functools.partial(run),
        "method": model.forward,
        "nested": lambda: [f()[0] for f in (run, by_default)],
        "many": (lambda models: lambda: models[0])([model]),
        "weak": (lambda ref: lambda: ref())(weakref.ref(model)),
        "free": counted.append,
    }

    def even(n: int) -> Any:
        return odd(n - 1) if n else model

    def odd(n: int) -> Any:
        return even(n - 1)

    parts["even"] = even
    again = copied(parts)
    own = again["model"]
    assert own is not model
    assert again["run"]() == (own, again["run"])
    assert again["default"]() == (own, again["run"])
    assert (again["default"].__doc__, again["run"].mark, again["run"].__name__) == ("Say.", "kept", "run")
    assert not hasattr(again["run"], "__wrapped__")
    assert again["partial"]()[0] is own
    assert again["method"].__self__ is own
    assert again["nested"]() == [own, own]
    assert again["many"]() is own
    assert again["weak"]() is own
    assert again["even"](2) is own
    assert again["free"] is parts["free"]
    assert len(counted) == 3
    assert run()[0] is model


def test_generators_go_on_from_where_they_are_and_those_of_the_process_are_shared() -> None:
    own = [torch.Generator().manual_seed(1), np.random.default_rng(1), random.Random(1), np.random.RandomState(1)]
    torch.rand(3, generator=own[0]), [g.random() for g in own[1:]]

    def draws(generators: list[Any]) -> list[float]:
        return [torch.rand((), generator=generators[0]).item(), *(g.random() for g in generators[1:])]

    again = copied(own)
    first = draws(again)
    assert draws(again) != first
    assert draws(own) == first
    for shared in (random.random, np.random.rand, torch.default_generator, np.random, random):
        assert copied(shared) == shared


def test_some_attributes_can_be_replaced() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    optimizer.own = (i for i in range(3))  # type: ignore[attr-defined]
    assert copied(optimizer, own=1, absent=2).own == 1
    assert not hasattr(copied(optimizer, own=1, absent=2), "absent")
