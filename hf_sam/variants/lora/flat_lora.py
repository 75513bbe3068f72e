# SPDX-License-Identifier: Apache-2.0
"""Flat-LoRA: train LoRA under random noise on the merged weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hf_sam.step_context import StepContext
from hf_sam.variants.base import Length, LengthOf, OnePass
from hf_sam.variants.lora.layers import active_factors, lora_layers
from hf_sam.vectors.shards import is_dtensor
from hf_sam.vectors.stochastic_rounding import seed_from
from hf_sam.vectors.vectors import Ascent, accumulation_dtype

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
STREAM = 0xF1A7
"""Part of the seed, so that this noise differs from other noise of the same run and step."""

UNKNOWN_LENGTH = (
    '`sam_variant="flat_lora"` raises its noise from the first step of the run to the last, and their number is not '
    "known. Set `max_steps`, or train on a dataset that has a length."
)
NOT_A_WEIGHT = (
    '`sam_variant="flat_lora"` adds noise to the frozen weights under LoRA. %r has %s. Leave that layer out of '
    '`target_modules`, or choose sam_variant="nbar", which changes A and B alone.'
)
SHARDED = (
    '`sam_variant="flat_lora"` needs the whole of each weight under LoRA on every process. Train with DDP where the '
    'model fits, or choose sam_variant="nbar".'
)


class FlatLoRA(OnePass):
    """Flat-LoRA (Li et al., ICML 2025): a step at W + s B A + noise, in one pass.

    *Experimental*: no measured run has gained by it yet.

    The noise on row i of the merged weight W' = W + s B A is normal with standard deviation

        factor * rho * ||W'_i|| / sqrt(n),    factor = (1 - cos(pi t / T)) / 2

    where n is the number of inputs and t / T the share of the run that is done (eq. 7 of the paper with sigma = rho,
    and its cosine-increasing strategy). For a convolution a row is the filter of one output channel. `rho` is
    relative to the weights, so no norm: the paper uses 0.05 for language, 0.1 and 0.15 for images.

    Noise added to the frozen W is noise added to W', and W comes back to the last bit. The noise depends on the run's
    seed and the step alone: it is the same for all micro-batches of a step, on all processes, and after a resume.
    """

    title = "Flat-LoRA"
    adapts_radius = False
    filters = False
    citation = """@inproceedings{li2025flatlora,
    title     = {Flat-{LoRA}: Low-Rank Adaptation over a Flat Loss Landscape},
    author    = {Tao Li and Zhengbao He and Yujun Li and Yasheng Wang and Lifeng Shang and Xiaolin Huang},
    booktitle = {International Conference on Machine Learning},
    year      = {2025},
    url       = {https://arxiv.org/abs/2409.14396}
}"""

    def __init__(self) -> None:
        self._layers: list[Any] = []

    def prepare_model(self, model: nn.Module) -> None:
        """Find the LoRA layers.

        Raises:
            ValueError: if there are none to train, or the weight under one cannot take noise: quantised, tied to
                another module, or not a matrix or a filter as in the paper (embeddings, DoRA).
        """
        layers = lora_layers(model, "flat_lora")
        uses: dict[int, int] = {}
        for module in model.modules():
            for p in module._parameters.values():
                uses[id(p)] = uses.get(id(p), 0) + 1
        for name, layer in layers.items():
            if reason := _unfit(layer, uses):
                raise ValueError(NOT_A_WEIGHT % (name, reason))
        self._layers = list(layers.values())

    @torch.no_grad()
    def direction_before_pass(
        self, params: list[Tensor], rho: Length | LengthOf, context: StepContext
    ) -> tuple[list[Tensor], Ascent] | None:
        """Return the frozen weights under LoRA, and the noise of this step.

        Args:
            params: not used, as the noise is on the weights under the adapters, not on the adapters.
            rho: standard deviation as a share of the root mean square of a row, >= 0.
            context: with the run's seed, and its length.

        Raises:
            ValueError: if the length of the run is not known.
            NotImplementedError: if the weights are spread over processes.
        """
        del params
        if not context.steps:
            raise ValueError(UNKNOWN_LENGTH)
        if callable(rho):
            raise ValueError('`sam_variant="flat_lora"` has a rho that is no length of a perturbation, got "auto".')
        strength = rho * (1 - math.cos(math.pi * context.progress)) / 2
        if not isinstance(strength, Tensor) and strength == 0:
            return None
        layers = [layer for layer in self._layers if any(factors.trained for factors in active_factors(layer))]
        weights = [layer.get_base_layer().weight for layer in layers]
        if not weights:
            return None
        if any(is_dtensor(w) or w.dim() < 2 for w in weights):
            raise NotImplementedError(SHARDED)
        generator = torch.Generator(weights[0].device).manual_seed(seed_from(context.seed, context.step, STREAM))
        noise, sizes = zip(*(_noise(layer, generator) for layer in layers), strict=True)
        scale = torch.ones((), device=weights[0].device, dtype=accumulation_dtype(weights)).mul_(strength)
        usable = torch.isfinite(torch.stack(sizes).sum()) & torch.isfinite(scale)
        return weights, Ascent(list(noise), torch.where(usable, scale, 0.0), usable)


def _unfit(layer: Any, uses: dict[int, int]) -> str | None:
    """Return why the weight under a LoRA layer cannot take noise; None if it can."""
    base = layer.get_base_layer()
    w = base._parameters.get("weight")
    if getattr(layer, "lora_embedding_A", None):
        return "an embedding, whose rows are not sums over inputs"
    if hasattr(layer, "parameter_name") or w is None or getattr(base, "groups", 1) > 1:
        return f"a {type(base).__name__}, which is more than one weight matrix"
    if getattr(layer, "lora_variant", None) or any(getattr(layer, "use_dora", {}).values()):
        return "a variant of LoRA (such as DoRA), whose merged weight is not W + s B A"
    if w.dtype not in FLOATING or not (type(w) in (Tensor, nn.Parameter) or is_dtensor(w)):
        return f"a quantised weight ({type(w).__name__} of {w.dtype})"
    if w.is_meta:
        return "a weight that is not in memory"
    if uses.get(id(w), 0) > 1:
        return "a weight that is tied to another module's"
    return None


def _noise(layer: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return normal noise with the standard deviation ||W'_i|| / sqrt(n) in row i, and the sum of these."""
    w = layer.get_base_layer().weight.detach()
    dtype = torch.promote_types(w.dtype, torch.float32)
    merged = w.to(dtype, copy=True, memory_format=torch.contiguous_format)
    rows = merged.T if getattr(layer, "fan_in_fan_out", False) else merged.flatten(1)  # one for each output
    for a, b, scaling in active_factors(layer):
        # For a filter: the convolution of A's filters with B's, which have size one.
        rows.addmm_(b.detach().flatten(1).to(dtype), a.detach().flatten(1).to(dtype), alpha=scaling)
    deviation = torch.linalg.vector_norm(rows, dim=1, keepdim=True) / math.sqrt(rows.shape[1])
    merged.normal_(generator=generator)
    rows.mul_(deviation)
    return merged.to(w.dtype), deviation.sum()
