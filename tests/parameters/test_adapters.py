# SPDX-License-Identifier: Apache-2.0
"""Does "adapters" find what PEFT has added, and do the other choices see trained parameters only?"""

from __future__ import annotations

from collections.abc import Callable

import peft
import pytest
from torch import nn

from hf_sam.parameters.choose import chosen
from tests.looped import looped
from tests.parameters.zoo import build

QUERIES = {"target_modules": ["query", "value"]}
TASK = {"task_type": "SEQ_CLS"}

CONFIGS: dict[str, Callable[[], peft.PeftConfig]] = {
    "lora": lambda: peft.LoraConfig(r=2, **QUERIES),
    "dora": lambda: peft.LoraConfig(r=2, use_dora=True, **QUERIES),
    "lora of an embedding": lambda: peft.LoraConfig(r=2, target_modules=["word_embeddings"]),
    "adalora": lambda: peft.AdaLoraConfig(init_r=3, target_r=2, total_step=10, **QUERIES),
    "loha": lambda: peft.LoHaConfig(r=2, **QUERIES),
    "lokr": lambda: peft.LoKrConfig(r=2, **QUERIES),
    "ia3": lambda: peft.IA3Config(feedforward_modules=[], **QUERIES),
    "oft": lambda: peft.OFTConfig(r=0, oft_block_size=4, **QUERIES),
    "vera": lambda: peft.VeraConfig(r=2, **QUERIES),
    "vblora": lambda: peft.VBLoRAConfig(r=2, num_vectors=4, vector_length=8, topk=2, **QUERIES),
    "ln tuning": lambda: peft.LNTuningConfig(target_modules=["LayerNorm"]),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=2, **TASK),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=2, **TASK),
    "p-tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=8, **TASK),
}


def adapted(config: peft.PeftConfig, name: str = "bert") -> nn.Module:
    return peft.get_peft_model(build(name), config)


@looped
@pytest.mark.parametrize("method", CONFIGS)
def test_the_adapters_are_what_peft_trains(method: str) -> None:
    """Without a head that is trained beside them."""
    model = adapted(CONFIGS[method]())
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    adapters = [n for n in trained if "modules_to_save" not in n]
    assert adapters
    assert list(chosen(model, "adapters")) == adapters
    assert list(chosen(model, "all")) == trained


@pytest.mark.parametrize("bias", ["none", "all"])
def test_neither_the_head_nor_biases_are_adapters(bias: str) -> None:
    model = adapted(peft.LoraConfig(r=2, bias=bias, **QUERIES, **TASK))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    got = set(chosen(model, "adapters"))
    assert got == {n for n in trained if ".lora_" in n}
    assert len(got) == 3 * 2 * 2
    assert {n.split(".")[2] for n in trained - got} == ({"classifier"} if bias == "none" else {"classifier", "bert"})


def test_frozen_adapters_are_not_chosen() -> None:
    model = adapted(peft.LoraConfig(r=2, **QUERIES))
    model.add_adapter("other", peft.LoraConfig(r=2, **QUERIES))
    model.set_adapter("other")
    got = chosen(model, "adapters")
    assert got
    assert all(".other." in n for n in got)


def test_an_adapter_that_was_injected_without_a_wrapper_is_found() -> None:
    model = peft.inject_adapter_in_model(peft.LoraConfig(r=2, **QUERIES), build("bert"))
    assert {n.split(".")[-3] for n in chosen(model, "adapters")} == {"lora_A", "lora_B"}


def test_a_layer_says_itself_what_is_its_adapter() -> None:
    layer = nn.ModuleDict({"up": nn.Linear(2, 2), "up_to_date": nn.Linear(2, 2), "base_layer": nn.Linear(2, 2)})
    layer.adapter_layer_names = ("up",)
    assert list(chosen(nn.Sequential(layer), "adapters")) == ["0.up.weight", "0.up.bias"]


def test_a_prompt_encoder_that_is_not_pefts_is_no_adapter() -> None:
    """Such as that of Segment Anything."""
    model = nn.ModuleDict({"prompt_encoder": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"no adapter of PEFT that is trained; wrap it with peft.get_peft_model first"):
        chosen(model, "adapters")


@pytest.mark.parametrize(("name", "targets"), [("bert", ["query"]), ("llama", ["q_proj"]), ("bart", ["q_proj"])])
def test_the_last_blocks_of_an_adapted_model(name: str, targets: list[str]) -> None:
    model = adapted(peft.LoraConfig(r=2, target_modules=targets), name)
    bare = {n for n in chosen(build(name), "last:1") if n.endswith(f"{targets[0]}.weight")}
    roots = {f"base_model.model.{n.removesuffix('.weight')}" for n in bare}
    assert set(chosen(model, "last:1")) == {f"{root}.lora_{side}.default.weight" for root in roots for side in "AB"}


def test_the_head_that_is_saved_with_an_adapter_belongs_to_the_last_blocks() -> None:
    model = adapted(peft.LoraConfig(r=2, **QUERIES, **TASK))
    other = {n for n in chosen(model, "last:1") if ".lora_" not in n}
    assert other == {f"base_model.model.classifier.modules_to_save.default.{n}" for n in ("weight", "bias")}


def test_prompts_do_not_belong_to_the_last_blocks() -> None:
    """They run first, and are registered last."""
    model = adapted(CONFIGS["prompt"]())
    assert not any("prompt_encoder" in n for n in chosen(model, "last:3"))


def test_frozen_normalisation_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match=r"none of its 7 normalisation layers has a trained parameter\. Trained"):
        chosen(adapted(peft.LoraConfig(r=2, **QUERIES)), "norm")
