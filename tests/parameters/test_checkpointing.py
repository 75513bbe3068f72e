# SPDX-License-Identifier: Apache-2.0
"""Do gradients arrive, and does autograd stop, where activations are checkpointed?"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hf_sam.parameters.choose import chosen, frozen_except
from tests.compare import relative_error
from tests.looped import looped
from tests.parameters.zoo import build, output
from tests.tolerances import RELATIVE

KINDS = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])


def without_dropout(model: nn.Module) -> nn.Module:
    """Return the model ready for training, with the same result at each pass."""
    for module in model.modules():
        for attribute in ("p", "dropout", "dropout_prob", "attention_dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    return model.train()


def checkpointed(model: nn.Module, *, reentrant: bool) -> nn.Module:
    model = without_dropout(model)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    return model


def gradients(model: nn.Module, keep: Iterable[nn.Parameter]) -> dict[str, Tensor]:
    with frozen_except(model.parameters(), keep, model):
        output(model).square().sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def close(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    same = left.keys() == right.keys()
    return same and relative_error(list(left.values()), [right[n] for n in left]) <= RELATIVE[torch.float64]


def hooks(model: nn.Module) -> list[list[object]]:
    return [list(m._forward_hooks.items()) for m in model.modules()]


@pytest.mark.slow
@looped
@pytest.mark.parametrize("which", ["norm", "last:1", r"query|q_proj|c_attn|\.q\.", "embed|wte|shared"])
@KINDS
@pytest.mark.parametrize("name", ["bert", "llama tied", "gpt2", "t5"])
def test_checkpointing_changes_no_gradient(name: str, reentrant: bool, which: str) -> None:
    plain, model = without_dropout(build(name).double()), checkpointed(build(name).double(), reentrant=reentrant)
    expected = gradients(plain, chosen(plain, which).values())
    assert expected
    assert close(gradients(model, chosen(model, which).values()), expected)


@KINDS
def test_checkpointing_changes_no_gradient_of_an_adapter(reentrant: bool) -> None:
    config = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    results = []
    for prepare in (without_dropout, lambda model: checkpointed(model, reentrant=reentrant)):
        torch.manual_seed(0)
        model = prepare(peft.get_peft_model(build("bert"), config).double())
        results.append(gradients(model, chosen(model, "last:1").values()))
    assert len(results[0]) == 2
    assert close(*results)


def flops(model: nn.Module, which: str, *, told: bool) -> int:
    with frozen_except(model.parameters(), chosen(model, which).values(), model if told else None):
        loss = output(model).square().sum()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_the_backward_pass_stops_although_transformers_asks_for_gradients_of_the_embeddings(name: str) -> None:
    model = checkpointed(build(name), reentrant=False)
    every = flops(model, "all", told=True)
    steps = [flops(model, f"last:{k}", told=True) for k in (1, 2, 3)]
    assert steps[0] < 0.45 * every
    assert steps[2] - steps[1] == steps[1] - steps[0] > 0
    assert flops(model, "last:1", told=False) > 1.5 * steps[0]


@KINDS
@pytest.mark.parametrize("fail", [True, False], ids=["after an error", "after a pass"])
def test_the_hooks_are_back(fail: bool, reentrant: bool) -> None:
    model = checkpointed(build("bert"), reentrant=reentrant)
    table = model.get_input_embeddings()
    last = table.register_forward_hook(lambda *_: None)
    before = hooks(model)
    assert sum(map(len, before)) == 2
    expectation = pytest.raises(KeyboardInterrupt) if fail else nullcontext()
    with expectation, frozen_except(model.parameters(), chosen(model, "norm").values(), model):
        assert len(table._forward_hooks) == (2 if reentrant else 1)
        if fail:
            raise KeyboardInterrupt
    assert hooks(model) == before
    last.remove()
    model.disable_input_require_grads()
    assert not table._forward_hooks


def test_hooks_stay_without_checkpointing_and_where_nothing_is_frozen() -> None:
    model = build("bert")
    model.enable_input_require_grads()
    with frozen_except(model.parameters(), chosen(model, "norm").values(), model):
        assert len(model.get_input_embeddings()._forward_hooks) == 1
    model = checkpointed(build("bert"), reentrant=False)
    with frozen_except(model.parameters(), model.parameters(), model):
        assert len(model.get_input_embeddings()._forward_hooks) == 1


def test_a_model_that_sees() -> None:
    """Pictures have no gradient, and nobody asks for one: the reentrant kind would leave out the blocks silently."""
    plain, model = without_dropout(build("vit").double()), checkpointed(build("vit").double(), reentrant=False)
    expected = gradients(plain, chosen(plain, "norm").values())
    assert close(gradients(model, chosen(model, "norm").values()), expected)

    model = checkpointed(build("vit"), reentrant=True)
    with pytest.raises(NotImplementedError, match=r"^Reentrant checkpointing leaves blocks .*'use_reentrant': False"):
        gradients(model, chosen(model, "norm").values())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    gradients(model, model.parameters())  # with all of them nothing is left out
    assert all(p.grad is not None for n, p in model.named_parameters() if "layer" in n)
