# SPDX-License-Identifier: Apache-2.0
"""Who sees Bi-LoRA's second LoRA? The training pass, and nobody else."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback, set_seed

from hf_sam import SAMConfig
from hf_sam.step_context import StepContext
from hf_sam.variants.lora.bi_lora import BiLoRA
from tests.compare import bits, same_bits
from tests.promises.runs import trainer_for
from tests.variants.lora.adapted import Headed, adapted, backward, data, factors, layer, peft

LR, RHO = 0.1, 0.3
MOMENT = StepContext(lr=LR)


def prepared(model: nn.Module) -> BiLoRA:
    variant = BiLoRA()
    variant.prepare_model(model)
    return variant


def climbed(model: nn.Module, steps: int = 3) -> BiLoRA:
    """Return a Bi-LoRA that perturbs."""
    variant = prepared(model)
    for _ in range(steps):
        backward(model, *data())
        variant.adjust_(RHO, MOMENT)
    assert variant.norm() > 0.01
    return variant


def test_at_radius_zero_training_is_plain_to_the_last_bit() -> None:
    found = []
    for rho in (None, 0.0):
        set_seed(1)
        model = adapted(lora_dropout=0.3)
        variant = None if rho is None else prepared(model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
        for _ in range(4):
            backward(model, *data())
            if variant is not None:
                variant.adjust_(rho, MOMENT)
            optimizer.step()
        found.append([*bits(model.parameters()), torch.get_rng_state()])
    assert same_bits(*found)


def test_a_radius_of_zero_switches_it_off_and_it_goes_on_from_where_it_was() -> None:
    model = adapted()
    x, _ = data()
    clean = model(x)
    variant = climbed(model)
    assert not torch.equal(model(x), clean)
    variant.adjust_(0.0, MOMENT)
    assert torch.equal(model(x), clean)
    theta = variant._state["theta"].clone()
    backward(model, *data())
    variant.adjust_(100.0, MOMENT)
    assert torch.equal(variant._state["theta"], theta)
    assert not torch.equal(model(x), clean)


def test_evaluation_disabled_adapters_and_saved_models_do_not_see_it() -> None:
    model = adapted()
    x, _ = data()
    variant = prepared(model)
    model.eval()
    clean, names = model(x), set(model.state_dict())
    with model.disable_adapter():
        reference = model.train()(x)
    for _ in range(3):
        backward(model, *data())
        variant.adjust_(RHO, MOMENT)
    assert not torch.equal(model(x), clean)
    assert torch.equal(model.eval()(x), clean)
    model.train()
    with model.disable_adapter():
        assert torch.equal(model(x), reference)
    assert set(model.state_dict()) == names
    assert not any(p is branch.a for branch in variant._branches.values() for p in model.parameters())
    merged = copy.deepcopy(model).eval().merge_and_unload()
    torch.testing.assert_close(merged(x), clean, rtol=1e-12, atol=1e-14)


def test_it_leaves_the_model_with_the_variant_that_brought_it() -> None:
    model = adapted()
    x, _ = data()
    clean = model(x)
    variant = climbed(model)
    variant.prepare_model(model)  # again: still one branch a layer
    assert len(layer(model, "first")._forward_hooks) == 1
    variant.adjust_(RHO, MOMENT)
    del variant
    gc.collect()
    assert not layer(model, "first")._forward_hooks
    assert torch.equal(model.train()(x), clean)


def test_it_is_another_direction_than_the_adapters_own() -> None:
    """What the paper holds against SAM on A and B: that stays in the column space of B."""
    model = adapted()
    variant = climbed(model, steps=5)
    (_, b), branch = factors(model, "first"), variant._branches["base_model.model.first"]
    epsilon = (branch.b @ branch.a).detach()
    inside = b @ torch.linalg.lstsq(b.detach(), epsilon).solution
    assert (epsilon - inside).norm() > 0.3 * epsilon.norm()


def test_a_switched_adapter_is_perturbed_and_an_idle_layer_is_not() -> None:
    model = adapted(Headed(), target_modules=["first", "head"])
    model.add_adapter("other", peft.LoraConfig(r=1, target_modules=["first"], init_lora_weights=False))
    model.double()
    variant = climbed(model)
    model.set_adapter("other")
    backward(model, *data())
    gradients = {name: branch.a.grad.any() for name, branch in variant._branches.items()}
    assert gradients == {"base_model.model.first": True, "base_model.model.head": False}


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"lora_dropout": 0.5}, {"rank_pattern": {"first": 4}}], ids=str
)
def test_the_layer_computes_with_the_sum_of_both_whatever_the_first_is(options: dict[str, Any]) -> None:
    model = adapted(**options)
    variant = climbed(model)
    x, _ = data()
    branch = variant._branches["base_model.model.first"]
    set_seed(1)
    perturbed = layer(model, "first")(x)
    branch.on = False
    set_seed(1)
    plain = layer(model, "first")(x)
    torch.testing.assert_close(perturbed - plain, x @ (branch.b @ branch.a).T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.float32, True), (torch.bfloat16, False)], ids=str)
def test_in_low_precision_the_layer_returns_what_it_did(dtype: torch.dtype, autocast: bool) -> None:
    model = adapted(dtype=dtype)
    variant = prepared(model)
    x = torch.randn(4, 5, dtype=dtype)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found = layer(model, "first")(x)
        assert found.dtype == torch.bfloat16
        found.float().square().sum().backward()
        variant.adjust_(RHO, MOMENT)
    assert variant.norm() > 0.01
    assert variant.norm().dtype == torch.float32


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_makes_no_difference(reentrant: bool) -> None:
    model = adapted()
    variant = climbed(model)
    x, y = data()
    found = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        variant._state["gradient"].zero_()
        nn.functional.cross_entropy(run(x.clone().requires_grad_()), y).backward()
        found.append(variant._state["gradient"].clone())
    assert found[0].any()
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


def test_once_hidden_it_acts_at_work_only_also_after_an_error() -> None:
    model = adapted()
    x, _ = data()
    variant = climbed(model)
    perturbed = model(x)
    variant.hide()
    clean = model(x)
    assert not torch.equal(clean, perturbed)
    with variant.at_work():
        assert torch.equal(model(x), perturbed)
    with pytest.raises(RuntimeError, match="in a pass"), variant.at_work():
        raise RuntimeError("in a pass")
    assert torch.equal(model(x), clean)


def without_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def test_callbacks_and_the_trained_model_see_the_weights_alone(tmp_path: Any) -> None:
    seen: list[bool] = []

    class Look(TrainerCallback):
        def look(self, model: nn.Module) -> None:
            kept = model.training
            outputs = []
            with torch.no_grad():
                for mode in (True, False):
                    model.train(mode)
                    outputs.append(model(**batch).logits)
            model.train(kept)
            seen.append(torch.equal(*outputs))

        def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
            self.look(model)

        on_substep_end = on_step_end

    look = Look()
    sam = SAMConfig(sam_variant="bi_lora")
    accumulated = {"gradient_accumulation_steps": 2, "max_steps": 3}
    trainer = trainer_for("lora", tmp_path, sam=sam, prepare=without_dropout, **accumulated)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    trainer.add_callback(look)
    trainer.train()
    look.look(trainer.model)
    assert trainer._sam.planner.variant.norm() > 0
    assert len(seen) == 7
    assert all(seen)
