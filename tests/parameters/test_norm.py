# SPDX-License-Identifier: Apache-2.0
"""Does "norm" find the normalisation layers of every library, by their classes?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from hf_sam.parameters.choose import NORMALISATION, chosen
from tests.looped import looped
from tests.parameters.zoo import build
from tests.small_models import Classifier

# What the names of normalisation layers' parameters look like in each model.
NAMES = {
    "bert": r"LayerNorm\.",
    "distilbert": r"layer_norm\.|LayerNorm\.",
    "deberta": r"LayerNorm\.",
    "gpt2": r"\.ln_",
    "llama": r"norm\.weight|layernorm\.weight",
    "t5": r"layer_norm\.weight",
    "bart": r"layer_norm\.|layernorm_embedding\.",
    "vit": r"layernorm",
    "swin": r"layernorm|embeddings\.norm|downsample\.norm",
    "resnet": r"\.normalization\.",
    "clip": r"norm|layrnorm",
    "wav2vec2": r"layer_norm\.",
}


@looped
@pytest.mark.parametrize("name", NAMES)
def test_the_normalisation_layers_of_a_model(name: str) -> None:
    model = build(name)
    everything = [n for n, _ in model.named_parameters()]
    expected = [n for n in everything if re.search(NAMES[name], n)]
    assert len(expected) > 3
    assert list(chosen(model, "norm")) == expected
    assert list(chosen(model, "no_norm")) == [n for n in everything if n not in expected]


def test_the_names_of_parameters_do_not_count() -> None:
    """Neither a gain that looks like one, nor a projection that is called a norm."""
    model = Classifier()
    model.norm, model.ln = nn.Linear(3, 3), nn.LayerNorm(3)
    assert list(chosen(model, "norm")) == ["ln.weight", "ln.bias"]


TORCHS = [
    nn.LayerNorm(4),
    nn.RMSNorm(4),
    nn.GroupNorm(2, 4),
    *(layer(4) for layer in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)),
    *(layer(4, affine=True) for layer in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)),
]


@looped
@pytest.mark.parametrize("layer", TORCHS, ids=lambda layer: type(layer).__name__)
def test_the_layers_of_torch(layer: nn.Module) -> None:
    class Mine(type(layer)):  # type: ignore[misc]
        """A subclass whose name says nothing."""

    mine = Mine.__new__(Mine)
    mine.__dict__ = layer.__dict__
    for module in (layer, mine):
        assert list(chosen(nn.Sequential(nn.Linear(4, 4), module), "norm")) == [
            f"1.{n}" for n, _ in layer.named_parameters()
        ]


def test_layers_without_parameters_are_no_error() -> None:
    model = nn.Sequential(nn.LocalResponseNorm(2), nn.LayerNorm(4, elementwise_affine=False), nn.LayerNorm(4))
    assert list(chosen(model, "norm")) == ["2.weight", "2.bias"]


def test_only_trained_ones_are_chosen() -> None:
    model = build("bert")
    model.bert.encoder.requires_grad_(False)
    assert list(chosen(model, "norm")) == [f"bert.embeddings.LayerNorm.{n}" for n in ("weight", "bias")]
    assert not any("encoder" in n for n in chosen(model, "no_norm"))


def test_a_block_named_after_its_normalisation_is_not_one() -> None:
    class EncoderStableLayerNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(2, 2), nn.LayerNorm(2)

    assert list(chosen(EncoderStableLayerNorm(), "norm")) == ["norm.weight", "norm.bias"]


@pytest.mark.parametrize("name", ["FusedLayerNorm", "LigerRMSNorm", "GroupNorm2d", "RMSNormGated", "NoNorm", "GRN"])
def test_layers_of_other_libraries(name: str) -> None:
    layer = type(name, (nn.Module,), {})()
    layer.gamma = nn.Parameter(torch.ones(4))
    assert list(chosen(nn.Sequential(layer), "norm")) == ["0.gamma"]


@pytest.mark.parametrize("name", ["NormalHead", "NormedEmbedding", "PreLayerNormLMHead", "RMSNormBlock", "Grnd"])
def test_other_classes_of_similar_names(name: str) -> None:
    layer = type(name, (nn.Module,), {})()
    layer.gamma = nn.Parameter(torch.ones(4))
    assert list(chosen(nn.Sequential(layer), "no_norm")) == ["0.gamma"]


# ----------------------------------------------------------------------------------------------------------------------
# All of transformers, read from its source
# ----------------------------------------------------------------------------------------------------------------------
MODELS = Path(transformers.__file__).parent / "models"
SOURCES = [path.read_text(encoding="utf-8") for path in MODELS.glob("*/modeling_*.py")]
CLASS = re.compile(r"^class (\w+)\(([^)]*)\):\n((?:[ \t].*\n|\n)*)", re.MULTILINE)
CLASSES = [match.groups() for text in SOURCES for match in CLASS.finditer(text)]
OWN = re.compile(r"self\.(\w+)(?:: [\w.]+)? = (?:torch\.)?nn\.Parameter\(")
STATISTIC = re.compile(r"rsqrt\(|\.(?:layer|rms|group|batch)_norm\(|\.var\(|\.std\(|vector_norm\(")

# Own parameters, and normalisation layers as children or a norm for another purpose.
NO_LAYERS = re.compile(
    r"(?:LMHead|XLLMHead|Model|ForXVector|ForPreTraining|ForConditionalGeneration|Embeddings|PositionalEncoding|CXBlock"
    r"|Attention|Resampler|Projector|UnitDecoder|ConvNextLayer|L2Clip)$"
)


def test_no_class_that_normalises_is_missed() -> None:
    assert len(CLASSES) > 5000
    missed = {
        name for name, _, body in CLASSES
        if OWN.search(body) and STATISTIC.search(body) and not NORMALISATION.search(name)
    }  # fmt: skip
    assert {name for name in missed if not NO_LAYERS.search(name)} == set()


# By their names they are, and what they hold is no gain or bias: a learned temperature.
EXCEPTIONS = {"ZayaQKNorm"}


def test_what_is_named_so_holds_gains_and_biases() -> None:
    named = {name: set(OWN.findall(body)) for name, _, body in CLASSES if NORMALISATION.search(name)}
    assert len(named) > 150
    other = {name for name, own in named.items() if own - {"weight", "bias", "gamma", "variance_epsilon"}}
    assert other <= EXCEPTIONS


def test_a_class_with_norm_in_its_name_is_a_layer_or_a_part_made_of_layers() -> None:
    """What the rule for names leaves out owns no parameters, or derives from a layer of torch's, or is no layer."""
    left = {(name, bases) for name, bases, body in CLASSES if "norm" in name.lower() and OWN.search(body)}
    left = {(name, bases) for name, bases in left if not NORMALISATION.search(name)}
    layers = {name for name, bases in left if re.search(r"nn\.\w*Norm", bases)}
    assert {name for name, _ in left} - layers <= {"RobertaPreLayerNormLMHead"}


def test_layers_that_derive_from_none_of_torchs() -> None:
    """Neither T5's nor Llama's does."""
    for name in ("t5", "llama"):
        model = build(name)
        assert not any(isinstance(m, nn.LayerNorm | nn.RMSNorm) for m in model.modules())
        assert all(p.dim() == 1 and torch.equal(p, torch.ones_like(p)) for p in chosen(model, "norm").values())
