# SPDX-License-Identifier: Apache-2.0
"""Graphs that are kept between products change no result, and are gone afterwards."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch

from hf_sam.sharpness import SharpnessAnalyzer
from tests.sharpness.models import build


def analyzer(graphs: int, family: str = "bert") -> SharpnessAnalyzer:
    model, examples = build(family)
    return SharpnessAnalyzer(model, examples, dtype="float64", batch_size=2, graphs=graphs)


def alive() -> int:
    """Return how many tensors with a graph there are."""
    gc.collect()
    return sum(isinstance(t, torch.Tensor) and t.grad_fn is not None for t in gc.get_objects())


class Forwards:
    """Counts the model's forward passes."""

    def __init__(self, one: SharpnessAnalyzer) -> None:
        self.count = 0
        one.examples.model.register_forward_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1


@pytest.mark.slow
def test_results_are_those_without_and_forward_passes_are_saved() -> None:
    found, counts = [], []
    for graphs in (0, 2, 9):
        one = analyzer(graphs)
        one.loss_function.products(torch.ones(1, one.loss_function.size, dtype=torch.float64))  # checks, once
        forwards = Forwards(one)
        result = one.top_eigenvalues()
        found.append(result.values[0])
        counts.append((forwards.count, result.products, len(one.examples.batches())))
    assert found[0] == found[1] == found[2]
    for graphs, (forwards_, products, batches) in zip((0, 2, 9), counts, strict=True):
        kept = min(graphs, batches)
        assert forwards_ == kept + (batches - kept) * products


@pytest.mark.slow
@pytest.mark.parametrize(("what", "args"), [("trace", ()), ("density", (12, 1)), ("min_eigenvalue", ())])
def test_other_measurements_are_the_same_too(what: str, args: tuple[int, ...]) -> None:
    without, with_ = (getattr(analyzer(graphs), what)(*args) for graphs in (0, 3))
    if what == "density":
        np.testing.assert_array_equal(without.nodes, with_.nodes)
    else:
        left, right = (getattr(r, "value", None) or r.values[0] for r in (without, with_))
        assert left == right


@pytest.mark.slow
def test_nothing_is_kept_after_a_measurement_and_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    one = analyzer(2)
    before = alive()
    one.top_eigenvalues()
    assert one.loss_function._graphs is None
    assert alive() <= before

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("hf_sam.sharpness.spectrum.extreme", fail)
    with pytest.raises(MemoryError):
        one.top_eigenvalues()
    assert one.loss_function._graphs is None


@pytest.mark.slow
def test_other_weights_see_no_old_graph() -> None:
    """Each measurement starts anew: the second one is of weights that moved in between."""
    one, other = analyzer(9), analyzer(0)
    before = one.top_eigenvalues().values
    offset = 0.05 * torch.ones(one.loss_function.size, dtype=torch.float64)
    with one.loss_function.moved(offset), other.loss_function.moved(offset):
        assert one.top_eigenvalues().values == other.top_eigenvalues().values
    assert one.top_eigenvalues().values == before


@pytest.mark.parametrize("graphs", [-1, 1.5, True])
def test_bad_numbers_are_refused(graphs: Any) -> None:
    with pytest.raises(ValueError, match=r"`SharpnessAnalyzer\(graphs=...\)` must be a whole number >= 0"):
        analyzer(graphs)


@pytest.mark.slow
def test_texts_of_about_the_same_length_share_a_batch_and_nothing_else_changes() -> None:
    model, examples = build("bert")
    texts = [{k: v[: 3 + i] if k != "labels" else v for k, v in e.items()} for i, e in enumerate(examples[:4])]

    def padded(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        keys = [key for key in rows[0] if key != "labels"]
        filled = {k: torch.stack([torch.nn.functional.pad(r[k], (0, longest - len(r[k]))) for r in rows]) for k in keys}
        return filled | {"labels": torch.stack([torch.as_tensor(r["labels"]) for r in rows])}

    for row in texts:
        row["attention_mask"] = torch.ones_like(row["input_ids"])
    shuffled = [texts[i] for i in (1, 3, 0, 2)]
    ones = [
        SharpnessAnalyzer(model, rows, padded, dtype="float64", batch_size=size)
        for rows, size in ((texts, 2), (shuffled, 2), (shuffled, 1))
    ]
    assert [b["input_ids"].shape[1] for b in ones[1].examples.batches()] == [6, 4]
    values = [one.top_eigenvalues(tol=1e-9).values[0] for one in ones]
    np.testing.assert_allclose(values, values[0], rtol=1e-9)
    assert [len(e["input_ids"]) for e in ones[1].examples.rows] == [4, 6, 3, 5], "m-sharpness has random groups"


@pytest.mark.slow
def test_other_examples_parameters_and_weights_have_graphs_of_their_own() -> None:
    one, plain = analyzer(9), analyzer(0)
    v = torch.ones(1, one.loss_function.size, dtype=torch.float64)
    offset = 0.05 * v[0]
    names = one.loss_function.names[:2]

    def products(analyzer_: SharpnessAnalyzer) -> list[torch.Tensor]:
        loss_function, found = analyzer_.loss_function, []
        found.append(loss_function.products(v))
        found.append(loss_function.on(analyzer_.examples.groups(3)[1]).products(v))
        part = loss_function.restricted(names)
        found.append(part.products(torch.ones(1, part.size, dtype=torch.float64)))
        with loss_function.moved(offset):
            found.append(loss_function.products(v))
        return [*found, loss_function.products(v)]

    expected = products(plain)
    with one.loss_function.graphs_kept():
        found = products(one)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[3])
