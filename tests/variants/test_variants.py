# SPDX-License-Identifier: Apache-2.0
"""Does every direction keep the rules of the step? A new one in VARIANTS is tested here without another line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_sam import VARIANTS, Variant, sharpness_aware_grad
from hf_sam.config import SAMConfig
from hf_sam.numerics import Ascent, dot, global_norm, snapshot
from hf_sam.state import load_state, save_state
from hf_sam.variants import make_variant
from tests.compare import bits, relative_error, same_bits
from tests.small_models import Classifier, square_closure
from tests.tolerances import RELATIVE

RHO = 0.3

# Further options worth the same checks; a variant's defaults are always checked.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "asam": [
        {"eta": 0.0, "scaled": "all"},
        {"eta": 0.5, "scaled": "named_weight"},
        {"eta": 0.0, "scaled": "all", "power": 1, "weighted_norm": False},
    ]
}
# Other test modules add directions of their own, which keep other rules.
NAMES = [name for name, variant in VARIANTS.items() if variant.__module__.startswith("hf_sam.")]
CASES = [(name, options) for name in NAMES for options in [{}, *OPTIONS.get(name, [])]]
every_case = pytest.mark.parametrize(("name", "options"), CASES, ids=str)
every_name = pytest.mark.parametrize("name", NAMES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])


class Problem:
    """Weights, a gradient and a fresh direction that knows the weights' names."""

    def __init__(self, name: str, options: dict[str, Any], dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(7)
        shapes = {"layer.weight": (8, 6), "layer.bias": (8,), "norm.weight": (8,), "scalar": ()}
        self.names = list(shapes)
        draws = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes.values()]
        self.w = [nn.Parameter(d.to(dtype)) for d in draws]
        draws = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes.values()]
        self.g = [d.to(dtype) for d in draws]
        self.make: Callable[[], Variant] = lambda: self.prepared(make_variant(name, options))
        self.direction = self.make()

    def prepared(self, direction: Variant) -> Variant:
        direction.prepare(list(zip(self.names, self.w, strict=True)))
        return direction

    def ascend(self, scale: float = 1.0, rho: float = RHO) -> Ascent:
        """Climb with a fresh direction; the direction gets copies, because it may overwrite the gradient."""
        return self.make().ascend(self.w, [g * scale for g in self.g], rho)

    def recover(self, epsilon: list[Tensor]) -> None:
        """Turn epsilon into the gradient; some signatures take the weights beside the parameters."""
        method = self.direction.recover_gradient_
        beside = [[p.detach() for p in self.w]] if "w" in inspect.signature(method).parameters else []
        method(self.w, *beside, epsilon)


# ----------------------------------------------------------------------------------------------------------------------
# ascend
# ----------------------------------------------------------------------------------------------------------------------
@every_dtype
@every_case
def test_epsilon_has_the_shape_and_dtype_of_the_weights(name: str, options: dict, dtype: torch.dtype) -> None:
    problem = Problem(name, options, dtype)
    ascent = problem.ascend()
    assert [(e.shape, e.dtype) for e in ascent.epsilon] == [(w.shape, w.dtype) for w in problem.w]
    assert (ascent.usable.shape, ascent.usable.dtype) == ((), torch.bool)
    assert ascent.usable


@every_dtype
@every_case
def test_ascend_leaves_the_weights_alone(name: str, options: dict, dtype: torch.dtype) -> None:
    problem = Problem(name, options, dtype)
    before = bits(problem.w)
    problem.ascend()
    assert same_bits(bits(problem.w), before)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 65536.0, 1e9])
@every_case
def test_epsilon_does_not_depend_on_the_length_of_the_gradient(name: str, options: dict, scale: float) -> None:
    problem = Problem(name, options)
    assert relative_error(problem.ascend(scale).epsilon, problem.ascend().epsilon) < RELATIVE[torch.float64]


@pytest.mark.parametrize("scale", [2.0**-10, 1024.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every_case
def test_nor_does_it_in_low_precision(name: str, options: dict, dtype: torch.dtype, scale: float) -> None:
    problem = Problem(name, options, dtype)
    assert relative_error(problem.ascend(scale).epsilon, problem.ascend().epsilon) < 10 * RELATIVE[dtype]


@every_case
def test_epsilon_is_proportional_to_rho(name: str, options: dict) -> None:
    problem = Problem(name, options)
    doubled = [e / 2 for e in problem.ascend(rho=2 * RHO).epsilon]
    assert relative_error(doubled, problem.ascend().epsilon) < RELATIVE[torch.float64]


@every_case
def test_radius_zero_does_not_move(name: str, options: dict) -> None:
    assert not any(e.any() for e in Problem(name, options).ascend(rho=0.0).epsilon)


@every_case
def test_epsilon_climbs(name: str, options: dict) -> None:
    problem = Problem(name, options)
    assert dot(problem.ascend().epsilon, problem.g) > 0


@pytest.mark.parametrize("bad", [0.0, float("inf"), float("-inf"), float("nan")])
@every_dtype
@every_case
def test_a_bad_gradient_gives_zero_and_says_so(name: str, options: dict, dtype: torch.dtype, bad: float) -> None:
    ascent = Problem(name, options, dtype).ascend(scale=bad)
    assert not ascent.usable
    assert not any(e.any() for e in ascent.epsilon)


@pytest.mark.parametrize("which", range(4))
@every_case
def test_one_bad_element_anywhere_is_enough(name: str, options: dict, which: int) -> None:
    problem = Problem(name, options)
    problem.g[which].view(-1)[0] = float("nan")
    ascent = problem.ascend()
    assert not ascent.usable
    assert not any(e.any() for e in ascent.epsilon)


@every_case
def test_a_good_gradient_after_a_bad_one_climbs_again(name: str, options: dict) -> None:
    problem = Problem(name, options)
    problem.direction.ascend(problem.w, [g * float("nan") for g in problem.g], RHO)
    ascent = problem.direction.ascend(problem.w, snapshot(problem.g), RHO)
    assert ascent.usable
    assert all(torch.isfinite(e).all() for e in ascent.epsilon)


# ----------------------------------------------------------------------------------------------------------------------
# recover_gradient_, combine, state
# ----------------------------------------------------------------------------------------------------------------------
@every_case
def test_the_recovered_gradient_is_parallel_to_the_gradient(name: str, options: dict) -> None:
    problem = Problem(name, options)
    if not problem.direction.recovers_gradient:
        with pytest.raises(NotImplementedError):
            problem.recover(snapshot(problem.g))
        return
    recovered = list(problem.ascend().epsilon)
    before = bits(problem.w)
    problem.recover(recovered)
    length = global_norm(recovered) / global_norm(problem.g)
    assert length > 0
    assert relative_error(recovered, [g * length for g in problem.g]) < RELATIVE[torch.float64]
    assert same_bits(bits(problem.w), before)


@every_case
def test_the_recovered_gradient_has_no_nan_where_a_weight_is_zero(name: str, options: dict) -> None:
    problem = Problem(name, options)
    if problem.direction.recovers_gradient:
        with torch.no_grad():
            problem.w[0][0].zero_()
        recovered = list(problem.ascend().epsilon)
        problem.recover(recovered)
        assert all(torch.isfinite(e).all() for e in recovered)


@every_case
def test_only_a_direction_that_combines_changes_the_perturbed_gradient(name: str, options: dict) -> None:
    problem = Problem(name, options)
    h = [g + 1 for g in problem.g]
    combined = problem.direction.combine(problem.g, h)
    assert problem.direction.combines != (list(combined) == h if not problem.direction.combines else False)


@every_case
def test_state_survives_a_checkpoint(name: str, options: dict, tmp_path: object) -> None:
    problem = Problem(name, options)
    for _ in range(3):
        problem.direction.ascend(problem.w, snapshot(problem.g), RHO)
    save_state(tmp_path, SAMConfig(sam_variant=name, sam_variant_kwargs=options), problem.direction.state_dict())
    _, state = load_state(tmp_path)
    resumed = problem.make()
    resumed.load_state_dict(state)
    next_step = [d.ascend(problem.w, snapshot(problem.g), RHO).epsilon for d in (problem.direction, resumed)]
    assert same_bits(bits(next_step[0]), bits(next_step[1]))


@every_name
def test_the_state_of_another_variant_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="of_another_variant"):
        make_variant(name).load_state_dict({"of_another_variant": 1})


# ----------------------------------------------------------------------------------------------------------------------
# In a step, and in words
# ----------------------------------------------------------------------------------------------------------------------
@every_case
def test_a_step_restores_the_weights_and_changes_the_gradient(name: str, options: dict) -> None:
    model, x = Classifier().double(), torch.randn(16, 5, dtype=torch.float64)
    square_closure(model, x)()
    before, clean = bits(model.parameters()), snapshot([p.grad for p in model.parameters()])
    names = model.named_parameters()
    sharpness_aware_grad(square_closure(model, x), names, rho=RHO, variant=name, variant_kwargs=options)
    assert same_bits(bits(model.parameters()), before)
    assert relative_error([p.grad for p in model.parameters()], clean) > 1e-3


@every_name
def test_a_variant_names_itself_and_its_paper(name: str) -> None:
    variant = VARIANTS[name]
    assert variant.title
    assert re.match(r"@\w+\{\w+,", variant.citation)
    assert variant.citation.count("{") == variant.citation.count("}")
    assert all(f"{key} " in variant.citation for key in ("title", "author", "year", "url"))


@every_name
def test_a_variant_documents_each_option(name: str) -> None:
    parameters = inspect.signature(VARIANTS[name]).parameters
    assert all(f"{option}:" in inspect.getdoc(VARIANTS[name]) for option in parameters)
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters.values())


@every_name
def test_instances_do_not_share_state(name: str) -> None:
    assert make_variant(name).__dict__ is not make_variant(name).__dict__
    assert make_variant(name) is not make_variant(name)
