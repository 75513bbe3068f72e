# SPDX-License-Identifier: Apache-2.0
"""Does "last:k" choose the last blocks of a model of one's own, and refuse where it cannot tell them?"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_sam.parameters.choose import chosen
from tests.parameters.zoo import Own, block, build


def test_the_order_of_registration_counts() -> None:
    model = Own(stem=nn.Linear(4, 4), blocks=nn.ModuleList([block() for _ in range(3)]), head=nn.Linear(4, 2))
    assert list(chosen(model, "last:1")) == ["blocks.2.0.weight", "blocks.2.0.bias", "head.weight", "head.bias"]


def test_blocks_may_be_in_a_sequential() -> None:
    model = Own(stem=nn.Linear(4, 4), blocks=nn.Sequential(block(), block()), head=nn.Linear(4, 2))
    assert list(chosen(model, "last:1")) == ["blocks.1.0.weight", "blocks.1.0.bias", "head.weight", "head.bias"]


def test_different_parts_in_a_sequential_are_no_blocks() -> None:
    """Sentence transformers are made so: the transformer, then a pooling and other layers."""
    encoder = Own(stem=nn.Linear(4, 4), blocks=nn.ModuleList([block(), block()]))
    got = chosen(Own(layers=nn.Sequential(encoder, block())), "last:1")
    assert list(got) == [f"layers.{n}" for n in ("0.blocks.1.0.weight", "0.blocks.1.0.bias", "1.0.weight", "1.0.bias")]


def test_a_list_of_dropouts_beside_the_blocks_is_no_stack() -> None:
    drops = nn.ModuleList([nn.Dropout(), nn.Dropout()])
    assert len(chosen(Own(blocks=nn.ModuleList([block(), block()]), drops=drops), "last:1")) == 2


def test_the_layers_of_a_head_are_no_blocks() -> None:
    head = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)])
    model = Own(blocks=nn.ModuleList([block(), block()]), head=head, more=nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    assert {n.split(".")[0] for n in chosen(model, "last:1")} == {"blocks", "head", "more"}


def test_what_embeds_is_never_last() -> None:
    model = Own(
        blocks=nn.ModuleList([block(), block()]),
        layernorm_embedding=nn.LayerNorm(4),
        unembed=nn.Linear(4, 4),
        positions=nn.Embedding(3, 4),
        position_norm=nn.LayerNorm(4),
    )
    assert list(chosen(model, "last:1"))[2:] == ["unembed.weight", "unembed.bias"]


@pytest.mark.parametrize("name", ["enc_to_dec_proj", "multi_modal_projector", "layernorm_embedding"])
def test_what_leads_to_the_blocks_is_never_last(name: str) -> None:
    """Some are registered after the decoder or the language model that they lead to."""
    model = Own(decoder=Own(blocks=nn.ModuleList([block(), block()])), **{name: nn.Linear(4, 4)}, head=nn.Linear(4, 2))
    assert {n.split(".")[0] for n in chosen(model, "last:2")} == {"decoder", "head"}


def test_whatever_is_not_the_backbone_is_the_head() -> None:
    class Classifier(Own):
        base_model_prefix = "backbone"

    backbone = Own(stem=nn.Linear(4, 4), blocks=nn.ModuleList([block(), block()]))
    model = Classifier(head=nn.Linear(4, 2), backbone=backbone)
    model.scale, model.back = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
    expected = ["scale", "back", "head.weight", "head.bias", "backbone.blocks.1.0.weight", "backbone.blocks.1.0.bias"]
    assert list(chosen(model, "last:1")) == expected


def test_a_wrapper_that_passes_on_attributes_is_no_head() -> None:
    """As PEFT's wrappers do."""

    class Wrapped(Own):
        base_model_prefix = "model"

    class Wrapper(Own):
        def __getattr__(self, name: str) -> object:
            return (
                self._modules["model"].base_model_prefix if name == "base_model_prefix" else super().__getattr__(name)
            )

    backbone = Own(blocks=nn.ModuleList([block(), block()]))
    model = Wrapper(prompts=nn.Linear(4, 4), model=Wrapped(head=nn.Linear(4, 2), model=backbone))
    assert {n.split(".")[1] for n in chosen(model, "last:1")} == {"head", "model"}


# ----------------------------------------------------------------------------------------------------------------------
# Refusals
# ----------------------------------------------------------------------------------------------------------------------
ONE = block()
REFUSED = {
    "too many": (lambda: build("bert"), r"=.last:4.\)` asks for the last 4 blocks, and bert\.encoder\.layer has 3\."),
    "albert": (
        lambda: build("albert"),
        r"blocks of albert\.encoder\.albert_layer_groups share their weights\. Choose by",
    ),
    "one block": (lambda: Own(blocks=nn.ModuleList([ONE] * 5)), "blocks of blocks share their weights"),
    "clip": (
        lambda: build("clip"),
        r"has text_model\.encoder\.layers \(3\), vision_model\.encoder\.layers \(3\), side by side\. Choose by a",
    ),
    "interleaved": (
        lambda: Own(blocks=nn.ModuleList([block(), block()]), norms=nn.ModuleList([nn.LayerNorm(4), nn.LayerNorm(4)])),
        r"has blocks \(2\), norms \(2\), side by side",
    ),
    "no blocks": (lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), r"needs an nn\.ModuleList of blocks"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_no_main_stack_is_an_error_that_says_why(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        chosen(make(), "last:4")
