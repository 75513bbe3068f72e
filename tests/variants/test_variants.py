# SPDX-License-Identifier: Apache-2.0
"""Does every variant keep the rules of the step? A new one in VARIANTS is tested here without another line."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from torch import Tensor

from hf_sam import VARIANTS, Variant, sharpness_aware_grad
from hf_sam.config.sam_config import SAMConfig
from hf_sam.trainer.state_file import load_state, save_state
from hf_sam.variants import make_variant
from hf_sam.vectors.flat import global_dot
from hf_sam.vectors.vectors import global_norm, snapshot
from tests.compare import bits, relative_error, same_bits
from tests.looped import looped
from tests.small_models import Classifier, square_closure
from tests.tolerances import RELATIVE
from tests.variants.problems import (
    RHO,
    Problem,
    every_case,
    every_combining_case,
    every_dtype,
    every_name,
    every_remembering_case,
)


# ----------------------------------------------------------------------------------------------------------------------
# ascend
# ----------------------------------------------------------------------------------------------------------------------
@looped
@every_dtype
@every_case
def test_epsilon_has_the_shape_and_dtype_of_the_weights(name: str, options: dict, dtype: torch.dtype) -> None:
    problem = Problem(name, options, dtype)
    ascent = problem.ascend()
    assert [(e.shape, e.dtype) for e in ascent.epsilon] == [(w.shape, w.dtype) for w in problem.w]
    assert (ascent.usable.shape, ascent.usable.dtype) == ((), torch.bool)
    assert ascent.usable


@looped
@every_dtype
@every_case
def test_ascend_leaves_the_weights_alone(name: str, options: dict, dtype: torch.dtype) -> None:
    problem = Problem(name, options, dtype)
    before = bits(problem.w)
    problem.ascend()
    assert same_bits(bits(problem.w), before)


@looped
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 65536.0, 1e9])
@every_case
def test_epsilon_does_not_depend_on_the_length_of_the_gradient(name: str, options: dict, scale: float) -> None:
    problem = Problem(name, options)
    assert relative_error(problem.ascend(scale).epsilon, problem.ascend().epsilon) < RELATIVE[torch.float64]


@looped
@pytest.mark.parametrize("scale", [2.0**-10, 1024.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every_case
def test_nor_does_it_in_low_precision(name: str, options: dict, dtype: torch.dtype, scale: float) -> None:
    problem = Problem(name, options, dtype)
    assert relative_error(problem.ascend(scale).epsilon, problem.ascend().epsilon) < 10 * RELATIVE[dtype]


@looped
@every_case
def test_epsilon_is_proportional_to_rho(name: str, options: dict) -> None:
    problem = Problem(name, options)
    doubled = [e / 2 for e in problem.ascend(rho=2 * RHO).epsilon]
    assert relative_error(doubled, problem.ascend().epsilon) < RELATIVE[torch.float64]


@looped
@every_case
def test_radius_zero_does_not_move(name: str, options: dict) -> None:
    assert not any(e.any() for e in Problem(name, options).ascend(rho=0.0).epsilon)


@looped
@every_case
def test_epsilon_climbs(name: str, options: dict) -> None:
    problem = Problem(name, options)
    assert global_dot(problem.ascend().epsilon, problem.g) > 0


@looped
@pytest.mark.parametrize("bad", [0.0, float("inf"), float("-inf"), float("nan")])
@every_dtype
@every_case
def test_a_bad_gradient_gives_zero_and_says_so(name: str, options: dict, dtype: torch.dtype, bad: float) -> None:
    ascent = Problem(name, options, dtype).ascend(scale=bad)
    assert not ascent.usable
    assert not any(e.any() for e in ascent.epsilon)


@looped
@pytest.mark.parametrize("which", range(4))
@every_case
def test_one_bad_element_anywhere_is_enough(name: str, options: dict, which: int) -> None:
    problem = Problem(name, options)
    problem.g[which].view(-1)[0] = float("nan")
    ascent = problem.ascend()
    assert not ascent.usable
    assert not any(e.any() for e in ascent.epsilon)


@looped
@every_case
def test_a_good_gradient_after_a_bad_one_climbs_again(name: str, options: dict) -> None:
    problem = Problem(name, options)
    problem.variant.ascend(problem.w, [g * float("nan") for g in problem.g], RHO)
    ascent = problem.variant.ascend(problem.w, snapshot(problem.g), RHO)
    assert ascent.usable
    assert all(torch.isfinite(e).all() for e in ascent.epsilon)


# ----------------------------------------------------------------------------------------------------------------------
# recover_gradient_, combine, state
# ----------------------------------------------------------------------------------------------------------------------
@looped
@every_case
def test_the_recovered_gradient_is_parallel_to_the_gradient(name: str, options: dict) -> None:
    problem = Problem(name, options)
    if not problem.variant.recovers_gradient:
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


@looped
@every_case
def test_the_recovered_gradient_has_no_nan_where_a_weight_is_zero(name: str, options: dict) -> None:
    problem = Problem(name, options)
    if problem.variant.recovers_gradient:
        with torch.no_grad():
            problem.w[0][0].zero_()
        recovered = list(problem.ascend().epsilon)
        problem.recover(recovered)
        assert all(torch.isfinite(e).all() for e in recovered)


@looped
@every_case
def test_only_a_direction_that_combines_changes_the_perturbed_gradient(name: str, options: dict) -> None:
    problem = Problem(name, options)
    if not problem.variant.combines:
        assert same_bits(bits(problem.combine(problem.g, problem.h)), bits(problem.h))


@looped
@every_dtype
@every_combining_case
def test_what_is_combined_has_the_dtype_of_the_gradient_and_its_scale(
    name: str, options: dict, dtype: torch.dtype
) -> None:
    problem = Problem(name, options, dtype)
    combined = problem.combine(problem.g, problem.h)
    assert [(c.shape, c.dtype) for c in combined] == [(g.shape, g.dtype) for g in problem.g]
    scaled = problem.combine([g * 256 for g in problem.g], [h * 256 for h in problem.h])
    assert relative_error([s / 256 for s in scaled], combined) < RELATIVE[dtype]


@looped
@every_dtype
@every_combining_case
def test_the_plain_gradient_is_left_alone_where_nothing_moved(name: str, options: dict, dtype: torch.dtype) -> None:
    """rho = 0 is the plain Trainer, bit for bit."""
    problem = Problem(name, options, dtype)
    problem.g[0][0] = -0.0
    assert same_bits(bits(problem.combine(problem.g, problem.g)), bits(problem.g))


@looped
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("which", ["g", "h", "both"])
@every_combining_case
def test_a_bad_gradient_leaves_the_perturbed_one_as_it_is(name: str, options: dict, which: str, bad: float) -> None:
    """An inf has to reach the gradient scaler, and one in g alone nobody."""
    problem = Problem(name, options)
    for gradient in [problem.g, problem.h] if which == "both" else [getattr(problem, which)]:
        gradient[0][0, 0] = bad
    assert same_bits(bits(problem.combine(problem.g, problem.h)), bits(problem.h))


@every_combining_case
def test_a_zero_gradient_leaves_the_perturbed_one_as_it_is(name: str, options: dict) -> None:
    problem = Problem(name, options)
    zero = [torch.zeros_like(g) for g in problem.g]
    assert same_bits(bits(problem.combine(problem.g, zero)), bits(zero))


@looped
@every_case
def test_gradients_may_be_laid_out_otherwise_than_their_weights(name: str, options: dict) -> None:
    """Also where a weight is so large that a CPU works on it in pieces."""
    w = [torch.randn(400, 400, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)]
    straight = [[torch.randn_like(x) for x in w] for _ in range(3)]
    crosswise = [[x.t().contiguous().t() for x in gradient] for gradient in straight]
    found = []
    for g, h, between in (straight, crosswise):
        variant = make_variant(name, options)
        variant.prepare([("layer.weight", w[0]), ("other.weight", w[1])])
        found.append(variant.ascend(w, snapshot(g), RHO).epsilon + variant.combine(snapshot(g), snapshot(h)))
        variant.reuse_(w, between)
        found[-1] += between
    assert not found[1][-1].is_contiguous()
    assert relative_error(found[1], found[0]) < RELATIVE[torch.float64]


@every_remembering_case
def test_a_bad_gradient_is_not_remembered(name: str, options: dict) -> None:
    problem = Problem(name, options)
    for scale in (1.0, float("nan"), float("inf"), 2.0):
        problem.ascend(scale, variant=problem.variant)
        problem.variant.combine([g * scale for g in problem.g], [h * scale for h in problem.h])
        remembered = snapshot(list(problem.variant.state_dict().values()))
        if scale == 1.0:
            good = bits(remembered)
        assert same_bits(bits(remembered), good) == (scale != 2.0)


@every_case
def test_state_survives_a_checkpoint(name: str, options: dict, tmp_path: object) -> None:
    """What a variant does after a resume: climb, combine, reuse."""
    problem = Problem(name, options)

    def act(variant: Variant, scale: float) -> list[Tensor]:
        between = [scale * h for h in problem.h]
        variant.reuse_(problem.w, between)
        epsilon = problem.ascend(scale, variant=variant).epsilon
        return [*between, *epsilon, *variant.combine(snapshot(problem.g), [scale * h for h in problem.h])]

    for scale in (1.0, 2.0, 3.0):
        act(problem.variant, scale)
    save_state(tmp_path, SAMConfig(sam_variant=name, sam_variant_kwargs=options), problem.variant.state_dict())
    _, state = load_state(tmp_path)
    resumed = problem.make()
    resumed.load_state_dict(state)
    for scale in (4.0, 5.0):
        assert same_bits(bits(act(problem.variant, scale)), bits(act(resumed, scale)))


@looped
@every_name
def test_the_state_of_another_variant_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="of_another_variant"):
        make_variant(name).load_state_dict({"of_another_variant": 1})


# ----------------------------------------------------------------------------------------------------------------------
# In a step, and in words
# ----------------------------------------------------------------------------------------------------------------------
@looped
@every_case
def test_a_step_restores_the_weights_and_changes_the_gradient(name: str, options: dict) -> None:
    model, x = Classifier().double(), torch.randn(16, 5, dtype=torch.float64)
    square_closure(model, x)()
    before, clean = bits(model.parameters()), snapshot([p.grad for p in model.parameters()])
    names = model.named_parameters()
    sharpness_aware_grad(square_closure(model, x), names, rho=RHO, variant=make_variant(name, options))
    assert same_bits(bits(model.parameters()), before)
    assert relative_error([p.grad for p in model.parameters()], clean) > 1e-3


@looped
@every_name
def test_a_variant_names_itself_and_its_paper(name: str) -> None:
    variant = VARIANTS[name]
    assert variant.title
    assert re.match(r"@\w+\{\w+,", variant.citation)
    assert variant.citation.count("{") == variant.citation.count("}")
    assert all(f"{key} " in variant.citation for key in ("title", "author", "year", "url"))


@looped
@every_name
def test_a_variant_documents_each_option(name: str) -> None:
    parameters = inspect.signature(VARIANTS[name]).parameters
    assert all(f"{option}:" in inspect.getdoc(VARIANTS[name]) for option in parameters)
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters.values())


@looped
@every_name
def test_instances_do_not_share_state(name: str) -> None:
    assert make_variant(name).__dict__ is not make_variant(name).__dict__
    assert make_variant(name) is not make_variant(name)
