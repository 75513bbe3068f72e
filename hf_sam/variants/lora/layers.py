# SPDX-License-Identifier: Apache-2.0
"""LoRA layers of a model, and their factors."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from hf_sam.vectors.shards import local_shard

NO_LORA = (
    '`sam_variant="%s"` is for LoRA: it needs layers with active, trainable adapters, and this model has %s. '
    "Wrap it with `peft.get_peft_model(model, LoraConfig(...))`, or choose another variant."
)
OTHER_ADAPTERS = (
    '`sam_variant="%s"` is for LoRA layers, whose weight is W + s B A; %r is a %s, which has other factors. '
    "Use `peft.LoraConfig`, or choose another variant."
)
TIED = (
    '`sam_variant="%s"`: %r shares its factors with another layer, and both would change them. Adapt one of the two, '
    "or wrap the model without `ensure_weight_tying`."
)
MERGED = '`sam_variant="%s"`: the adapters of %r are merged into its weight. Call `model.unmerge_adapter()` first.'


class Factors(NamedTuple):
    """One adapter of a LoRA layer: it adds s B A to the weight W.

    Attributes:
        a: A, r x inputs for a linear layer.
        b: B, outputs x r for a linear layer.
        scaling: s.
    """

    a: Tensor
    b: Tensor
    scaling: float

    @property
    def trained(self) -> bool:
        """Whether both factors are trained."""
        return self.a.requires_grad and self.b.requires_grad


def lora_layers(model: nn.Module, method: str) -> dict[str, Any]:
    """Return the LoRA layers of `model` by name, recognised by their attributes rather than by their class.

    Adapters may be switched while a model trains, and sharding replaces parameters: call `active_factors` at each step.

    Args:
        model: wrapped by `peft` or built with its layers.
        method: the name of the variant that asks, for messages.

    Raises:
        ValueError: if no adapter is active and trained, if adapters are merged or shared, or if layers have other
            factors.
    """
    layers = {name: module for name, module in model.named_modules() if _is_lora(module)}
    for name, layer in layers.items():
        if hasattr(layer, "lora_E"):  # AdaLoRA
            raise ValueError(OTHER_ADAPTERS % (method, name, type(layer).__name__))
        if getattr(layer, "merged", False):
            raise ValueError(MERGED % (method, name))
    if not any(factors.trained for layer in layers.values() for factors in active_factors(layer)):
        found = "none that is active and has both A and B trained" if layers else "no LoRA layer"
        raise ValueError(NO_LORA % (method, found))
    _refuse_tied(layers, method)
    return layers


def active_factors(layer: Any) -> list[Factors]:
    """Return the active adapters of a LoRA layer, trained or not; none while adapters are disabled."""
    if getattr(layer, "disable_adapters", False):
        return []
    return [factors for name in layer.active_adapters if (factors := _factors(layer, name)) is not None]


def _refuse_tied(layers: dict[str, Any], method: str) -> None:
    seen: set[int] = set()
    for name, layer in layers.items():
        places = [local_shard(t).data_ptr() for factors in active_factors(layer) for t in (factors.a, factors.b)]
        places = [place for place in places if place]  # not of an empty shard, nor of a parameter without memory yet
        if seen & set(places):
            raise ValueError(TIED % (method, name))
        seen.update(places)


def _is_lora(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in ("lora_A", "lora_B", "scaling", "get_base_layer", "active_adapters"))


def _factors(layer: Any, adapter: str) -> Factors | None:
    if adapter in layer.lora_A:
        return Factors(layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter])
    if adapter in getattr(layer, "lora_embedding_A", ()):
        return Factors(layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter], layer.scaling[adapter])
    return None
