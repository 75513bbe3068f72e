# SPDX-License-Identifier: Apache-2.0
"""Are weights rounded and pruned as torch's own quantised modules and its pruning do it?"""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from hf_sam.robustness import RobustnessAnalyzer
from hf_sam.robustness.layers import layers_of
from hf_sam.robustness.pruning import prune_weights
from hf_sam.robustness.quantisation import quantise_dynamically, round_weights, rounded
from tests.robustness.data import small


def by_torch(model: nn.Module) -> nn.Module:
    """Return the model with torch's own int8 modules in it."""
    quantisation = pytest.importorskip("torch.ao.quantization")
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("torch's kernels here leave no bit of the inputs unused")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantisation.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_int8_is_that_of_torchs_own_modules(family: str) -> None:
    model, examples = small(family)
    one = RobustnessAnalyzer(model, examples, batch_size=4)
    found = one.quantised(dynamic=True)
    theirs = RobustnessAnalyzer(by_torch(copy.deepcopy(model)), examples, batch_size=4, dtype="as loaded").as_trained()
    apart = np.abs(found.predictions.logits - theirs.predictions.logits).max()
    rounding = np.abs(found.predictions.logits - one.as_trained().predictions.logits).max()
    assert apart < 0.05 * rounding  # an input halfway between two levels may fall on the other one
    assert found.scores["accuracy"] == theirs.scores["accuracy"]
    assert found.scores["nll"] == pytest.approx(theirs.scores["nll"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0])
def test_a_layer_in_int8_is_torchs_for_inputs_of_any_sign(shift: float) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(40, 30)), torch.randn(16, 7, 40) + shift
    theirs = by_torch(copy.deepcopy(model))(x)
    quantise_dynamically(model)
    torch.testing.assert_close(model(x), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_rounding_is_that_of_torchs_tensors_of_integers(bits: int) -> None:
    torch.manual_seed(0)
    weight, most = torch.randn(6, 20), 2 ** (bits - 1) - 1
    step = weight.abs().amax(dim=1).double() / most
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.quantize_per_channel(weight, step, torch.zeros(6, dtype=torch.long), 0, torch.qint8)
    torch.testing.assert_close(rounded(weight, bits), theirs.dequantize())
    assert len(rounded(weight, bits)[0].unique()) <= 2 * most + 1


def test_groups_have_steps_of_their_own_and_the_last_one_may_be_smaller() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 10)
    found = rounded(weight, 4, group=4)
    for columns in (slice(0, 4), slice(4, 8), slice(8, 10)):
        torch.testing.assert_close(found[:, columns], rounded(weight[:, columns], 4))
    torch.testing.assert_close(rounded(weight, 4, group=64), rounded(weight, 4))
    assert rounded(torch.zeros(2, 3), 4).eq(0).all()


def test_a_channel_is_an_output_in_every_kind_of_layer() -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    kinds = {"a": nn.Linear(5, 3), "b": Conv1D(3, 5), "c": nn.Conv2d(2, 3, 2), "d": nn.ConvTranspose2d(2, 3, 2)}
    model = nn.ModuleDict(kinds)
    with torch.no_grad():
        for layer in layers_of(model):
            layer.weight.copy_(layer.from_rows(layer.rows() * torch.tensor([[1.0], [10.0], [100.0]])))
    before = {layer.name: layer.rows().clone() for layer in layers_of(model)}
    assert round_weights(model, 4) == sum(rows.numel() for rows in before.values())
    for layer in layers_of(model):
        assert layer.rows().shape[0] == 3
        assert layer.weight.shape == kinds[layer.name].weight.shape
        error = (layer.rows() - before[layer.name]).abs().amax(1)
        assert (error <= before[layer.name].abs().amax(1) / 14 * 1.001).all()


def test_a_head_that_is_tied_to_the_embedding_is_rounded_alone() -> None:
    model, _ = small("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    embedding = model.transformer.wte.weight.detach().clone()
    round_weights(model, 3)
    assert torch.equal(model.transformer.wte.weight, embedding)
    assert not torch.equal(model.lm_head.weight, embedding)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_pruning_is_torchs(scope: str, share: float) -> None:
    model, _ = small("vit")
    theirs = copy.deepcopy(model)
    places = [(layer.module, "weight") for layer in layers_of(theirs)]
    if scope == "global":
        prune.global_unstructured(places, prune.L1Unstructured, amount=share)
    else:
        for module, name in places:
            prune.l1_unstructured(module, name, amount=share)
    gone = prune_weights(model, share, scope)
    for ours, (module, _name) in zip(layers_of(model), places, strict=True):
        assert torch.equal(ours.weight, module.weight)
    assert gone == sum(int((module.weight_mask == 0).sum()) for module, _ in places)


def test_a_model_without_matrices_is_told_so() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
            return x * self.scale

    examples = [{"x": torch.tensor([1.0, 0.0]), "labels": 0}] * 2
    one = RobustnessAnalyzer(Scaled(), examples)
    assert one.as_trained().scores["accuracy"] == 1
    with pytest.raises(ValueError, match="linear layers and convolutions in floating point, and Scaled has none"):
        one.quantised(4)
