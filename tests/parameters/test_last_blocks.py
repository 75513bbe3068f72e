# SPDX-License-Identifier: Apache-2.0
"""Does "last:k" choose the last blocks and what runs after them, in models of every shape?"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import transformers as tf
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from hf_sam.parameters.choose import chosen
from tests.looped import looped
from tests.parameters.zoo import GPT2, KINDS, STACKED, VISION, Own, build, output, stack_of

CONVOLUTION = ("conv.weight", "conv.bias", "LayerNorm.weight", "LayerNorm.bias")


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def listed(name: str, model: nn.Module, k: int) -> set[str]:
    """Return the names that the table of models says are "last:k"."""
    kind, path = KINDS[name], stack_of(name, model)
    beginnings = (*(f"{path}.{i}." for i in range(kind.blocks - k, kind.blocks)), *kind.after)
    return {n for n in names(model) if n.startswith(beginnings)}


# ----------------------------------------------------------------------------------------------------------------------
# The reference: what autograd knows
# ----------------------------------------------------------------------------------------------------------------------
def tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def leaves_behind(tensors: list[Tensor]) -> set[int]:
    """Return the `id` of each parameter that the graph behind `tensors` leads to."""
    found: set[int] = set()
    seen: set[object] = set()
    left = [t.grad_fn for t in tensors if t.grad_fn is not None]
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        left += [parent for parent, _ in node.next_functions if parent is not None]
    return found


def reached(model: nn.Module, path: str) -> tuple[set[str], list[set[str]]]:
    """Return what has a gradient, and for each block what its inputs depend on."""
    entered: list[list[Tensor]] = []
    for block in model.get_submodule(path):
        seen: list[Tensor] = []
        entered.append(seen)
        block.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.extend(tensors_in([args, kwargs])), with_kwargs=True
        )
    name_of = {id(p): n for n, p in model.named_parameters()}
    used = {name_of[p] for p in leaves_behind([output(model)])}
    return used, [{name_of[p] for p in leaves_behind(seen)} for seen in entered]


built = functools.cache(build)  # for what changes nothing of the model
CASES = [(name, k) for name in STACKED for k in range(1, KINDS[name].blocks + 1)]
# Choosing less than could be costs nothing. This convolution runs after the first block.
LEFT_OUT = {("deberta", 3): {"deberta.encoder.conv." + n for n in CONVOLUTION}}


@looped
@pytest.mark.parametrize(("name", "k"), CASES, ids=lambda v: str(v).replace(" ", "-"))
def test_the_last_blocks_and_what_runs_after_them(name: str, k: int) -> None:
    model = built(name)
    got = chosen(model, f"last:{k}")
    assert set(got) == listed(name, model, k)
    assert list(got) == [n for n in names(model) if n in got]
    assert all(p is dict(model.named_parameters())[n] for n, p in got.items())


@looped
@pytest.mark.parametrize("name", STACKED, ids=lambda name: name.replace(" ", "-"))
def test_autograd_agrees(name: str) -> None:
    """What is chosen is what has a gradient and does not act through the inputs of the blocks."""
    model = build(name)
    used, behind = reached(model, stack_of(name, model))
    for k in range(1, KINDS[name].blocks + 1):
        got = {n for n in chosen(model, f"last:{k}") if n in used}
        assert got
        assert got == used - behind[-k] - LEFT_OUT.get((name, k), set())


# ----------------------------------------------------------------------------------------------------------------------
# Only what is trained, wherever it hangs
# ----------------------------------------------------------------------------------------------------------------------
def test_frozen_parameters_are_not_chosen() -> None:
    model = build("bert")
    model.bert.requires_grad_(False)
    assert set(chosen(model, "last:2")) == {"classifier.weight", "classifier.bias"}
    model.classifier.requires_grad_(False)
    model.bert.embeddings.requires_grad_(True)
    with pytest.raises(ValueError, match=r"'last:2' chooses none: nothing in these blocks or after them is trained"):
        chosen(model, "last:2")


def test_a_head_tied_to_the_embedding_is_not_chosen() -> None:
    """Its gradient needs the whole backward pass."""
    tied, free = build("llama tied"), build("llama")
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert "lm_head.weight" in chosen(free, "last:1")
    assert not any(p is tied.lm_head.weight for p in chosen(tied, "last:3").values())


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: model], ids=["wrapped", "bare"])
def test_wrappers_change_nothing(wrap: type[nn.Module]) -> None:
    model = build("llama")
    expected = {id(p) for p in chosen(model, "last:2").values()}
    for i, layer in enumerate(model.model.layers):
        model.model.layers[i] = checkpoint_wrapper(Own(_orig_mod=layer))  # the latter as torch.compile does
    got = chosen(wrap(model), "last:2")
    assert {id(p) for p in got.values()} == expected
    assert set(got) <= set(names(model))


def test_a_model_put_together_from_two() -> None:
    """GPT-2 has matrices of its own kind, neither linear layers nor convolutions."""
    decoder = tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2 | {"n_embd": 24}, add_cross_attention=True))
    model = tf.VisionEncoderDecoderModel(encoder=tf.ViTModel(tf.ViTConfig(**VISION)), decoder=decoder)
    assert model.enc_to_dec_proj is not None
    beginnings = ("decoder.transformer.h.2.", "decoder.transformer.ln_f.")
    assert list(chosen(model, "last:1")) == [n for n in names(model) if n.startswith(beginnings)]
