# SPDX-License-Identifier: Apache-2.0
"""Are choices checked before there is a model, and searched by name where they are expressions?"""

from __future__ import annotations

import pytest
from torch import nn

from hf_sam.parameters.choose import checked_filter, chosen
from tests.looped import looped
from tests.parameters.zoo import build
from tests.small_models import Classifier, Tied


# ----------------------------------------------------------------------------------------------------------------------
# The text alone
# ----------------------------------------------------------------------------------------------------------------------
@looped
@pytest.mark.parametrize("which", ["all", "norm", "no_norm", "last:1", "last:12", "adapters", r"layer\.\d+\.", "last"])
def test_a_choice_that_can_be_is_returned(which: str) -> None:
    assert checked_filter(which) == which


WRONG = {
    "": r"^`SAMConfig\(sam_parameters=...\)` must be all, norm, no_norm, last:k, adapters or a regular expression for "
    r"the parameters' names, got an empty string\.$",
    "last:0": r"^`SAMConfig\(sam_parameters=...\)` must be last:k with a whole number k >= 1, such as last:2, got 'la",
    "last:": "whole number k >= 1",
    "last:k": "whole number k >= 1",
    "last:-1": "whole number k >= 1",
    "last:1.5": "whole number k >= 1",
    "last: 2": "whole number k >= 1",
    "*.bias": r"got '\*\.bias' \(nothing to repeat at position 0\)\. What is \* in a file pattern is \.\* here\.$",
    "layer[": r"got 'layer\[' \(unterminated character set at position 5\)\.$",
}


@looped
@pytest.mark.parametrize("which", WRONG)
def test_a_choice_that_cannot_be_is_an_error_with_the_rule(which: str) -> None:
    with pytest.raises(ValueError, match=WRONG[which]):
        checked_filter(which)
    with pytest.raises(ValueError, match=WRONG[which]):
        chosen(build("bert"), which)


@pytest.mark.parametrize("which", [None, 2, True, ["norm"]])
def test_a_choice_is_a_text(which: object) -> None:
    with pytest.raises(TypeError, match=r"`--sam_parameters` must be all, .*, got "):
        checked_filter(which, "--sam_parameters")


# ----------------------------------------------------------------------------------------------------------------------
# Names
# ----------------------------------------------------------------------------------------------------------------------
def test_all_is_all_that_is_trained_once() -> None:
    model = Tied()
    model.out.bias.requires_grad_(False)
    assert list(chosen(model, "all")) == ["embed.weight"]


def test_an_expression_is_searched_in_the_names() -> None:
    model = build("bert")
    assert set(chosen(model, r"layer\.[01]\..*query|^classifier")) == {
        *(f"bert.encoder.layer.{i}.attention.self.query.{n}" for i in (0, 1) for n in ("weight", "bias")),
        *(f"classifier.{n}" for n in ("weight", "bias")),
    }
    assert not any("encoder" in n for n in chosen(model, "^(?!.*encoder)"))


def test_a_shared_parameter_is_found_by_each_of_its_names() -> None:
    model = build("llama tied")
    assert [id(p) for p in chosen(model, "lm_head").values()] == [id(model.model.embed_tokens.weight)]
    assert list(chosen(model, "lm_head")) == ["model.embed_tokens.weight"]


def test_what_wrappers_add_to_the_names_is_not_searched() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self._checkpoint_wrapped_module = module

    model = nn.ModuleDict({"a": Wrapper(nn.Linear(2, 2)), "b": nn.Linear(2, 2)})
    assert list(chosen(model, r"^a\.weight$")) == ["a._checkpoint_wrapped_module.weight"]
    assert list(chosen(nn.DataParallel(model), "^b")) == ["b.weight", "b.bias"]
    with pytest.raises(ValueError, match="no name matches"):
        chosen(model, "wrapped")


# ----------------------------------------------------------------------------------------------------------------------
# Nothing to choose
# ----------------------------------------------------------------------------------------------------------------------
def test_no_match_is_an_error_with_examples() -> None:
    message = (
        r"`SAMConfig\(sam_parameters=...\)` must choose a trained parameter of the model, and 'attn' chooses none: no "
        r"name matches this regular expression\. Trained are 5, such as first.weight, gain.weight, second.bias\.$"
    )
    with pytest.raises(ValueError, match=message):
        chosen(Classifier(), "attn")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("norms", "norm"), ("No-Norm", "no_norm"), ("ALL", "all"), ("adaptor", "adapters"), ("last2", "last:k")],
)
def test_a_keyword_with_a_mistake_is_recognised(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"expression; did you mean '{meant}'"):
        chosen(nn.Linear(2, 2), typed)


def test_a_match_of_frozen_parameters_is_an_error_that_says_so() -> None:
    model = build("bert")
    model.bert.requires_grad_(False)
    with pytest.raises(ValueError, match=r"the 6 parameters whose names match this regular expression are frozen"):
        chosen(model, "query")


def test_a_model_without_trained_parameters_is_an_error() -> None:
    with pytest.raises(ValueError, match="chooses from the trained parameters, and this model has none"):
        chosen(nn.Linear(2, 2).requires_grad_(False), "all")


def test_nothing_but_normalisation_is_an_error_for_the_rest() -> None:
    with pytest.raises(ValueError, match="nothing else than normalisation layers is trained"):
        chosen(nn.LayerNorm(2), "no_norm")


def test_the_message_names_the_argument_as_typed() -> None:
    with pytest.raises(ValueError, match=r"^`--sam_parameters` must choose"):
        chosen(nn.Linear(2, 2), "norm", "--sam_parameters")
