# SPDX-License-Identifier: Apache-2.0
"""Are checkpoints loaded whole, whatever their tensors are called in the file, and is it said what they lack?"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_sam import SAMConfig, SAMTrainer

SHARDED = {"max_shard_size": "1KB"}


def bert(seed: int, kind: Any = BertForSequenceClassification) -> nn.Module:
    torch.manual_seed(seed)
    return kind(BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                           intermediate_size=8, max_position_embeddings=8))  # fmt: skip


def vit(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return ViTForImageClassification(
        ViTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=4,
                  patch_size=2)
    )  # fmt: skip


def gpt2(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2))


def mixtral(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return MixtralForCausalLM(
        MixtralConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                      num_key_value_heads=1, num_local_experts=2)
    )  # fmt: skip


class Said(logging.Handler):
    """What transformers has warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"


@pytest.fixture
def said() -> Any:
    handler = Said()
    logging.getLogger("transformers").addHandler(handler)
    yield handler
    logging.getLogger("transformers").removeHandler(handler)


@pytest.fixture
def renamed() -> None:
    """Skip where ViT's tensors are called in memory what they are called in the file."""
    if not any(name.startswith("vit.layers.") for name in vit(0).state_dict()):
        pytest.skip("a transformers that does not rename ViT's tensors, as up to 5.5.4")


def trainer(model: nn.Module, folder: Path, variant: str | None = "sam") -> Trainer:
    args = TrainingArguments(str(folder / "out"), report_to=[], use_cpu=True, seed=3)
    if variant is None:
        return Trainer(model, args)
    return SAMTrainer(model, args, sam_config=SAMConfig(sam_variant=variant))


def load(how: str, one: Trainer, folder: Path) -> None:
    if how == "resume":
        one._load_from_checkpoint(str(folder))
    else:
        one.state.best_model_checkpoint = str(folder)
        one._load_best_model()


def others(model: nn.Module, expected: nn.Module) -> set[str]:
    wanted = expected.state_dict()
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, wanted[name])}


def without(folder: Path, part: str) -> None:
    """Take the tensors with `part` in their names out of a checkpoint."""
    file = folder / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if part not in n}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("how", ["resume", "best model"])
@pytest.mark.parametrize("settings", [{}, SHARDED], ids=["one file", "sharded"])
@pytest.mark.parametrize("make", [vit, pytest.param(mixtral, marks=pytest.mark.slow)])
def test_renamed_and_converted_tensors_are_loaded_and_nothing_is_said(
    make: Any, settings: Any, how: str, tmp_path: Path, said: Said
) -> None:
    saved = make(1)
    saved.save_pretrained(tmp_path / "saved", **settings)
    assert (tmp_path / "saved" / "model.safetensors").exists() != bool(settings)
    one = trainer(make(2), tmp_path)
    streams = torch.get_rng_state()
    load(how, one, tmp_path / "saved")
    assert others(one.model, saved) == set()
    assert torch.equal(torch.get_rng_state(), streams)
    assert "missing" not in said.text
    assert one._sam.loading is None


@pytest.mark.parametrize("how", ["resume", "best model"])
@pytest.mark.parametrize("variant", ["sam", "none"])
def test_what_a_checkpoint_lacks_is_said_as_the_trainer_says_it(
    variant: str, how: str, tmp_path: Path, said: Said
) -> None:
    bert(1).save_pretrained(tmp_path / "saved")
    without(tmp_path / "saved", "layer.1.")
    load(how, trainer(bert(2), tmp_path, variant), tmp_path / "saved")
    found, said.text = said.text, ""
    load(how, trainer(bert(2), tmp_path, None), tmp_path / "saved")
    assert found == said.text
    assert "missing keys" in found
    assert "encoder.layer.1.output.dense.weight" in found


@pytest.mark.usefixtures("renamed")
@pytest.mark.parametrize("settings", [{}, SHARDED], ids=["one file", "sharded"])
def test_without_a_variant_the_trainer_loads_and_speaks(settings: Any, tmp_path: Path, said: Said) -> None:
    vit(1).save_pretrained(tmp_path / "saved", **settings)
    models, texts = [], []
    for variant in ("none", None):
        said.text = ""
        one = trainer(vit(2), tmp_path, variant)
        one._load_from_checkpoint(str(tmp_path / "saved"))
        models.append(one.model)
        texts.append(said.text)
    assert texts[0] == texts[1]
    assert "missing keys" in texts[0]
    assert others(models[0], models[1]) == set()


@pytest.mark.usefixtures("renamed")
def test_of_a_renamed_checkpoint_only_what_it_lacks_is_said_and_stays(tmp_path: Path, said: Said) -> None:
    saved, model = vit(1), vit(2)
    saved.save_pretrained(tmp_path / "saved")
    without(tmp_path / "saved", "layer.1.output.dense")
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer(model, tmp_path)._load_from_checkpoint(str(tmp_path / "saved"))
    lacking = {"vit.layers.1.mlp.fc2.weight"}  # the biases are zero in both
    assert others(model, saved) == lacking
    assert all(torch.equal(model.state_dict()[name], fresh[name]) for name in lacking)
    line = next(line for line in said.text.splitlines() if "There were missing keys" in line)
    assert "fc2.weight" in line
    assert "fc1" not in line


def test_a_checkpoint_of_the_base_model_is_loaded_and_the_head_is_said_to_be_missing(
    tmp_path: Path, said: Said
) -> None:
    saved, model = bert(1, BertModel), bert(2)
    saved.save_pretrained(tmp_path / "saved")
    trainer(model, tmp_path)._load_from_checkpoint(str(tmp_path / "saved"))
    assert others(model.bert, saved) == set()
    assert (
        "There were missing keys in the checkpoint model loaded: ['classifier.bias', 'classifier.weight']" in said.text
    )


@pytest.mark.parametrize("settings", [{}, SHARDED], ids=["one file", "sharded"])
def test_tied_weights_are_not_said_to_be_missing(settings: Any, tmp_path: Path, said: Said) -> None:
    saved = gpt2(1)
    saved.save_pretrained(tmp_path / "saved", **settings)
    one = trainer(gpt2(2), tmp_path)
    one._load_from_checkpoint(str(tmp_path / "saved"))
    assert others(one.model, saved) == set()
    assert "missing" not in said.text


@pytest.mark.usefixtures("renamed")
def test_a_checkpoint_with_other_shapes_is_an_error_in_one_line(tmp_path: Path) -> None:
    vit(1).save_pretrained(tmp_path / "saved")
    torch.manual_seed(2)
    wider = ViTForImageClassification(
        ViTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=4,
                  patch_size=2)
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="other names than the model's, and ViTForImageClassification"):
        trainer(wider, tmp_path)._load_from_checkpoint(str(tmp_path / "saved"))
