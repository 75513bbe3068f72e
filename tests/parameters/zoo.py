# SPDX-License-Identifier: Apache-2.0
"""Tiny models of the kinds whose blocks, heads and normalisations are arranged in different ways, with inputs."""

from __future__ import annotations

import copy
import functools
from typing import Any, NamedTuple

import torch
import transformers as tf
from torch import nn

WORDS = 40
TEXT = {"vocab_size": WORDS, "max_position_embeddings": 24, "hidden_size": 16, "intermediate_size": 24}
BLOCKS = {"num_hidden_layers": 3, "num_attention_heads": 2}
PICTURE = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 24}
SMALL = TEXT | BLOCKS
VISION = PICTURE | BLOCKS
SEQ2SEQ = {"vocab_size": WORDS, "d_model": 16, "decoder_start_token_id": 0}
GPT2 = {"vocab_size": WORDS, "n_embd": 16, "n_layer": 3, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}
BART = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in
        (("layers", 3), ("attention_heads", 2), ("ffn_dim", 24))}  # fmt: skip
DEBERTA = {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3}
SPEECH = {"conv_dim": [8, 8], "conv_kernel": [4, 4], "conv_stride": [4, 4], "num_feat_extract_layers": 2}
SPEECH |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
CLIP = {"text_config": SMALL, "vision_config": VISION, "projection_dim": 8}
LLAVA = {"text_config": SMALL | {"model_type": "llama"}, "vision_config": VISION | {"model_type": "clip_vision_model"}}


class Kind(NamedTuple):
    """How a tiny model is made, and what runs last in it.

    Attributes:
        model: name of its class.
        config: its settings; the class of the configuration belongs to the model's.
        stack: name of its main stack of blocks, or "a|b" where releases differ; None where there is none.
        after: the rest of what "last:k" means: beginnings of names.
        blocks: length of the stack.
    """

    model: str
    config: dict[str, Any]
    stack: str | None
    after: tuple[str, ...] = ()
    blocks: int = 3


def kind(model: str, stack: str | None, *after: str, blocks: int = 3, **config: Any) -> Kind:
    return Kind(model, config, stack, after, blocks)


KINDS: dict[str, Kind] = {
    "bert": kind("BertForSequenceClassification", "bert.encoder.layer", "bert.pooler.", "classifier.", **SMALL),
    "bert mlm": kind(
        "BertForMaskedLM", "bert.encoder.layer", "cls.predictions.bias", "cls.predictions.transform.", **SMALL
    ),
    "minilm": kind("BertModel", "encoder.layer", "pooler.", **SMALL),
    "roberta": kind("RobertaForSequenceClassification", "roberta.encoder.layer", "classifier.", **SMALL),
    # The head is registered before the backbone.
    "xlm-roberta": kind("XLMRobertaForSequenceClassification", "roberta.encoder.layer", "classifier.", **SMALL),
    "distilbert": kind(
        "DistilBertForSequenceClassification", "distilbert.transformer.layer", "pre_classifier.", "classifier.",
        vocab_size=WORDS, dim=16, hidden_dim=24, n_layers=3, n_heads=2,
    ),
    # All blocks share a table of relative positions, registered after them.
    "mpnet": kind("MPNetForSequenceClassification", "mpnet.encoder.layer", "classifier.", **SMALL),
    # So do these, and normalise it; a convolution after the first block is registered after the last one.
    "deberta": kind(
        "DebertaV2ForSequenceClassification", "deberta.encoder.layer", "pooler.", "classifier.",
        **DEBERTA, **SMALL,
    ),
    "gpt2": kind("GPT2LMHeadModel", "transformer.h", "transformer.ln_f.", **GPT2),
    # The head is called an embedding.
    "gpt-neox": kind(
        "GPTNeoXForCausalLM", "gpt_neox.layers", "gpt_neox.final_layer_norm.", "embed_out.", "lm_head.", **SMALL
    ),
    "opt": kind(
        "OPTForCausalLM", "model.decoder.layers", "model.decoder.final_layer_norm.",
        vocab_size=WORDS, hidden_size=16, ffn_dim=24, word_embed_proj_dim=16, **BLOCKS,
    ),
    "llama": kind("LlamaForCausalLM", "model.layers", "model.norm.", "lm_head.", **SMALL),
    "llama tied": kind("LlamaForCausalLM", "model.layers", "model.norm.", tie_word_embeddings=True, **SMALL),
    "llama classifier": kind(
        "LlamaForSequenceClassification", "model.layers", "model.norm.", "score.", pad_token_id=0, **SMALL
    ),
    "t5": kind(
        "T5ForConditionalGeneration", "decoder.block", "decoder.final_layer_norm.",
        d_kv=8, d_ff=24, num_layers=3, num_heads=2, **SEQ2SEQ,
    ),
    "bart": kind("BartForConditionalGeneration", "model.decoder.layers", **SEQ2SEQ, **BART),
    "mbart": kind(
        "MBartForConditionalGeneration", "model.decoder.layers", "model.decoder.layer_norm.", **SEQ2SEQ, **BART
    ),
    "vit": kind("ViTForImageClassification", "vit.layers|vit.encoder.layer", "vit.layernorm.", "classifier.", **VISION),
    "deit": kind(
        "DeiTForImageClassification", "deit.layers|deit.encoder.layer", "deit.layernorm.", "classifier.", **VISION
    ),
    # Stages are blocks.
    "swin": kind(
        "SwinForImageClassification", "swin.encoder.layers", "swin.layernorm.", "classifier.", blocks=2,
        image_size=8, patch_size=2, num_channels=1, embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=2,
    ),
    "resnet": kind(
        "ResNetForImageClassification", "resnet.encoder.stages", "classifier.",
        num_channels=1, embedding_size=8, hidden_sizes=[8, 8, 16], depths=[1, 2, 1], layer_type="basic",
    ),
    "clip classifier": kind(
        "CLIPForImageClassification", "vision_model.encoder.layers", "vision_model.post_layernorm.", "classifier.",
        vision_config=VISION,
    ),
    "llava": kind(
        "LlavaForConditionalGeneration", "model.language_model.layers", "model.language_model.norm.", "lm_head.",
        image_token_index=WORDS - 1, **LLAVA,
    ),
    # Convolutions are in front, in a list of blocks as well.
    "wav2vec2": kind(
        "Wav2Vec2ForSequenceClassification", "wav2vec2.encoder.layers", "projector.", "classifier.",
        hidden_size=16, intermediate_size=24, **SPEECH, **BLOCKS,
    ),
    "albert": kind("AlbertForSequenceClassification", None, embedding_size=8, **SMALL),
    "clip": kind("CLIPModel", None, **CLIP),
}  # fmt: skip
STACKED = [name for name, kind in KINDS.items() if kind.stack]


@functools.cache
def _made(name: str) -> nn.Module:
    cls = getattr(tf, KINDS[name].model)
    torch.manual_seed(0)
    return cls(cls.config_class(**copy.deepcopy(KINDS[name].config))).eval()


def build(name: str) -> nn.Module:
    """Return a new copy of the model, without dropout."""
    return copy.deepcopy(_made(name))


def stack_of(name: str, model: nn.Module) -> str:
    """Return the name of the main stack in the installed release of transformers."""
    names = {n for n, _ in model.named_modules()}
    return next(path for path in KINDS[name].stack.split("|") if path in names)


def output(model: nn.Module) -> torch.Tensor:
    """Return what the model makes of some fixed inputs: its logits, or its pooled output."""
    generator = torch.Generator().manual_seed(1)
    inputs: dict[str, torch.Tensor] = {}
    wanted = model.main_input_name
    if wanted == "input_ids":
        inputs["input_ids"] = torch.randint(3, WORDS - 1, (2, 6), generator=generator)
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.randint(3, WORDS - 1, (2, 5), generator=generator)
        if "Llava" in type(model).__name__:
            inputs["input_ids"][:, 1:5] = WORDS - 1
            wanted = "pixel_values"
    if wanted == "pixel_values":
        inputs["pixel_values"] = torch.randn(2, 1, 8, 8, generator=generator).to(model.dtype)
    if wanted == "input_values":
        inputs["input_values"] = torch.randn(2, 400, generator=generator).to(model.dtype)
    made = model(**inputs)
    return made.pooler_output if "pooler_output" in made else made.logits


class Own(nn.Module):
    """Parts in the order in which they are given."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def block() -> nn.Module:
    """Return something that has parts, as the blocks of a model do."""
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh())
