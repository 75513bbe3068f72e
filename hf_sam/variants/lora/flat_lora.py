# SPDX-License-Identifier: Apache-2.0
"""Flat-LoRA: train LoRA under random noise on the merged weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
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
        """Return the frozen weights under LoRA, and the noise of this step: a copy of all of them at once.

        Args:
            params: not used, as the noise is on the weights under the adapters, not on the adapters.
            rho: standard deviation as a share of the root mean square of a row, >= 0.
            context: with the run's seed, and its length.

        Raises:
            ValueError: if the length of the run is not known.
            NotImplementedError: if the weights are spread over processes.
        """
        ways = list(self.ways_before_pass(params, rho, context))
        if not ways:
            return None
        weights, directions = zip(*((w[0], ascent.direction[0]) for w, ascent in ways), strict=True)
        return list(weights), ways[0][1]._replace(direction=list(directions))

    @torch.no_grad()
    def ways_before_pass(
        self, params: list[Tensor], rho: Length | LengthOf, context: StepContext
    ) -> Iterator[tuple[list[Tensor], Ascent]]:
        """Yield the frozen weights under LoRA with their noise, one at a time; see `direction_before_pass`."""
        del params
        if not context.steps:
            raise ValueError(UNKNOWN_LENGTH)
        if callable(rho):
            raise ValueError('`sam_variant="flat_lora"` has a rho that is no length of a perturbation, got "auto".')
        strength = rho * (1 - math.cos(math.pi * context.progress)) / 2
        layers = [layer for layer in self._layers if any(factors.trained for factors in active_factors(layer))]
        if not layers or (not isinstance(strength, Tensor) and strength == 0):
            return
        weights = [layer.get_base_layer().weight for layer in layers]
        if any(is_dtensor(w) or w.dim() < 2 for w in weights):
            raise NotImplementedError(SHARDED)
        deviations = [_deviation(layer) for layer in layers]
        generator = torch.Generator(weights[0].device).manual_seed(seed_from(context.seed, context.step, STREAM))
        scale = torch.ones((), device=weights[0].device, dtype=accumulation_dtype(weights)).mul_(strength)
        usable = torch.isfinite(torch.stack([d.sum() for d in deviations]).sum()) & torch.isfinite(scale)
        scale = torch.where(usable, scale, 0.0)
        for layer, w, deviation in zip(layers, weights, deviations, strict=True):
            yield [w], Ascent([_noise(layer, deviation, generator)], scale, usable)


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


def _deviation(layer: Any) -> Tensor:
    """Return the standard deviation of the noise in each row, ||W'_i|| / sqrt(n)."""
    w = layer.get_base_layer().weight.detach()
    merged = w.to(_dtype(w), copy=True, memory_format=torch.contiguous_format)
    rows = _rows(layer, merged)
    for a, b, scaling in active_factors(layer):
        # For a filter: the convolution of A's filters with B's, which have size one.
        rows.addmm_(b.detach().flatten(1).to(rows.dtype), a.detach().flatten(1).to(rows.dtype), alpha=scaling)
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return lengths / math.sqrt(rows.shape[1])


def _noise(layer: Any, deviation: Tensor, generator: torch.Generator) -> Tensor:
    """Return normal noise with that standard deviation in each row."""
    w = layer.get_base_layer().weight.detach()
    noise = torch.empty(w.shape, dtype=_dtype(w), device=w.device).normal_(generator=generator)
    _rows(layer, noise).mul_(deviation)
    return noise.to(w.dtype)


def _dtype(w: Tensor) -> torch.dtype:
    return torch.promote_types(w.dtype, torch.float32)


def _rows(layer: Any, whole: Tensor) -> Tensor:
    """Return a weight as a matrix with a row for each output."""
    return whole.T if getattr(layer, "fan_in_fan_out", False) else whole.flatten(1)
