# SPDX-License-Identifier: Apache-2.0
"""Do gradients arrive at the chosen parameters only, and does autograd stop where it may?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.utils.flop_counter import FlopCounterMode

from hf_sam.parameters.choose import chosen, frozen_except
from tests.compare import relative_error
from tests.distributed.launch import FSDP2_ON_CPU
from tests.looped import looped
from tests.parameters.zoo import build, output
from tests.tolerances import RELATIVE


def gradients(model: nn.Module, keep: dict[str, nn.Parameter] | None = None) -> dict[str, Tensor]:
    """Return the gradients of one pass that there are, by name."""
    model.zero_grad()
    with frozen_except(model.parameters(), model.parameters() if keep is None else keep.values()):
        output(model).square().sum().backward()
    return {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}


def whole(grad: Tensor) -> Tensor:
    return grad.full_tensor() if hasattr(grad, "full_tensor") else grad.clone()


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


WHICH = ["norm", "no_norm", "last:1", "last:2", r"query|q_lin|\.q\.|c_attn|q_proj", "bias|norm"]


@looped
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("name", ["bert mlm", "gpt2", "llama tied", "t5", "vit", "mpnet"])
def test_the_chosen_get_the_gradient_they_always_get_and_the_others_none(name: str, which: str) -> None:
    model = build(name).double()
    every = gradients(model)
    keep = chosen(model, which)
    expected = {n: every[n] for n in keep if n in every}
    assert 0 < len(expected) < len(every)
    got = gradients(model, keep)
    assert got.keys() == expected.keys()
    assert relative_error(list(got.values()), [expected[n] for n in got]) <= RELATIVE[torch.float64]
    assert same(gradients(model), every)


def test_a_shared_parameter_gets_the_gradient_of_all_its_uses() -> None:
    model = build("llama tied")
    every = gradients(model)
    name = "model.embed_tokens.weight"
    assert same(gradients(model, chosen(model, "lm_head")), {name: every[name]})


# ----------------------------------------------------------------------------------------------------------------------
# What is saved: counted, not timed
# ----------------------------------------------------------------------------------------------------------------------
def work(name: str, which: str) -> tuple[int, int]:
    """Return the multiplications and additions of a backward pass, and the bytes that the forward pass keeps for it."""
    model = build(name).train()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with frozen_except(model.parameters(), chosen(model, which).values()):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = output(model).square().sum()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
    return counter.get_total_flops(), sum(kept.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama tied", "t5", "vit"])
def test_the_backward_pass_stops_before_the_last_blocks(name: str) -> None:
    """Each block less saves what a block costs; nothing is kept for the blocks before."""
    flops, kept = zip(*(work(name, which) for which in ("last:1", "last:2", "last:3", "all")), strict=True)
    block = flops[1] - flops[0]
    assert block > 0
    assert flops[2] - flops[1] == block
    assert flops[3] >= flops[2] + (0 if name != "t5" else 2 * block)  # T5's encoder is not entered
    assert kept[1] - kept[0] == pytest.approx(kept[2] - kept[1], rel=0.05)
    assert kept[0] < kept[1] < kept[2]
    assert kept[3] > kept[2]
    assert flops[0] < 0.5 * flops[3]


@pytest.mark.parametrize("name", ["bert", "llama tied", "vit"])
def test_without_matrices_half_of_the_backward_pass_is_left(name: str) -> None:
    """Each matrix is multiplied by twice in it: for its own gradient and for that of its input."""
    norm, every = work(name, "norm")[0], work(name, "all")[0]
    assert 0.4 * every < norm < 0.75 * every
    assert work(name, "norm")[1] < work(name, "all")[1]


# ----------------------------------------------------------------------------------------------------------------------
# Everything is as before, whatever happens
# ----------------------------------------------------------------------------------------------------------------------
def flags(model: nn.Module) -> list[bool]:
    return [p.requires_grad for p in model.parameters()]


def mixed() -> nn.Module:
    """A model that is trained in part."""
    model = build("bert")
    model.bert.embeddings.requires_grad_(False)
    return model


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_everything_is_trained_again_after_an_error(error: type[BaseException]) -> None:
    model = mixed()
    before = flags(model)
    seen: list[bool] = []

    def fail() -> None:
        with frozen_except(model.parameters(), chosen(model, "norm").values()):
            seen.extend(flags(model))
            raise error

    with pytest.raises(error):
        fail()
    assert sum(seen) == len(chosen(model, "norm")) == 12
    assert flags(model) == before


def test_an_interrupt_while_freezing_leaves_nothing_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixed()
    before = flags(model)
    freeze, calls = Tensor.requires_grad_, []

    def interrupted(p: Tensor, value: bool = True) -> Tensor:
        calls.append(value)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return freeze(p, value)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Parameter, "requires_grad_", interrupted)
        with pytest.raises(KeyboardInterrupt), frozen_except(model.parameters(), chosen(model, "norm").values()):
            pytest.fail("the interrupt is lost")
    assert flags(model) == before


def test_one_choice_within_another() -> None:
    model = mixed()
    outer, inner = chosen(model, "last:2"), chosen(model, "norm")
    before = flags(model)
    with frozen_except(model.parameters(), outer.values()):
        with frozen_except(model.parameters(), inner.values()):
            assert list(chosen(model, "all")) == [n for n in outer if n in inner]
        assert list(chosen(model, "all")) == list(outer)
    assert flags(model) == before


def test_parameters_may_be_iterators_and_repeat() -> None:
    model = build("llama tied")
    several = [*model.parameters(), *model.parameters(), model.lm_head.weight]
    with frozen_except(iter(several), iter(chosen(model, "norm").values())):
        assert list(chosen(model, "all")) == list(chosen(model, "norm"))
    assert all(flags(model))


def test_gradients_of_the_others_stay() -> None:
    """Those of earlier micro-batches, that the next pass is added to."""
    model = build("bert")
    output(model).square().sum().backward()
    earlier = {n: (p.grad, p.grad.clone()) for n, p in model.named_parameters() if p.grad is not None}
    keep = chosen(model, "last:1")
    with frozen_except(model.parameters(), keep.values()):
        output(model).square().sum().backward()
    for n, p in model.named_parameters():
        if n in earlier:
            grad, value = earlier[n]
            assert p.grad is grad
            assert torch.equal(grad, value * 2 if n in keep else value)


def test_hooks_on_a_parameter_survive() -> None:
    """Such as those with which DDP and the Trainer average gradients."""
    model = build("bert")
    calls: list[str] = []
    hook: Callable[[Tensor], None] = lambda p: calls.append("accumulated")  # noqa: E731
    model.bert.pooler.dense.weight.register_post_accumulate_grad_hook(hook)
    model.bert.pooler.dense.weight.register_hook(lambda grad: calls.append("computed"))
    gradients(model, chosen(model, "encoder"))
    assert calls == []
    gradients(model)
    assert calls == ["computed", "accumulated"]


@pytest.mark.skipif(not FSDP2_ON_CPU, reason="fully_shard needs a GPU")
def test_shards_notice_each_change(tmp_path: Path) -> None:
    """FSDP2 computes with copies of the parameters, made at the first pass."""
    model = build("llama tied")
    reference = {which: gradients(model, chosen(model, which)) for which in ("all", "norm", "last:1")}
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        for which in ("all", "norm", "last:1", "norm", "all"):
            assert same(gradients(model, chosen(model, which)), reference[which])
    finally:
        dist.destroy_process_group()
