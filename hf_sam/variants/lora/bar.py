# SPDX-License-Identifier: Apache-2.0
"""nBAR and oBAR: keep the two factors of a LoRA layer in balance, as SAM would."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from hf_sam.step_context import StepContext
from hf_sam.variants.base import Length, Regulariser
from hf_sam.variants.lora.layers import active_factors, lora_layers
from hf_sam.vectors.shards import Shards, as_shards, local_shard
from hf_sam.vectors.vectors import HALF_PRECISION, accumulation_dtype

TOO_COARSE = (
    '`sam_variant="%s"` multiplies adapters by factors like 1.0001, which %s rounds to 1. Keep the adapters in '
    "float32: `get_peft_model(..., autocast_adapter_dtype=True)`, the default, with bf16=True or fp16=True for speed."
)
NO_GRADIENT = '`sam_variant="%s"`: no LoRA layer received gradients for both A and B. Does the loss depend on them?'
IN_PIECES = (
    '`sam_variant="%s"` cannot see which factor a piece of a flattened parameter belongs to (FSDP1, ZeRO-3). '
    "Use FSDP2, DDP or ZeRO-1."
)
Pair = tuple[Tensor, Tensor]


class BAR(Regulariser):
    """Balancedness-aware regularisation: what SAM does to the factors of W + s B A, without SAM's second pass.

    At each step every LoRA layer has one factor multiplied by 1 + alpha * lr and the other by 1 - alpha * lr, before
    the optimizer's step, like weight decay; lr is that of each factor's parameter group (LoRA+ gives B a larger one
    than A). `rho` is alpha: the paper's mu_0 is 0.2, 0.5, 1 or 2, falling linearly or
    as a cosine (`rho_schedule`). A layer stays as it is if A or B is frozen or got no gradient. All layers stay as they
    are if a gradient of A or B is not finite: a gradient scaler skips that step.
    """

    default_rho = 0.5
    citation = """@inproceedings{li2024implicit,
    title     = {Implicit Regularization of Sharpness-Aware Minimization for Scale-Invariant Problems},
    author    = {Bingcong Li and Liang Zhang and Niao He},
    booktitle = {Advances in Neural Information Processing Systems},
    year      = {2024},
    url       = {https://arxiv.org/abs/2410.14802}
}"""

    def __init__(self) -> None:
        self._layers: list[Any] = []
        self._changes: list[Tensor] = []

    def prepare_model(self, model: nn.Module) -> None:
        """Find the LoRA layers.

        Raises:
            ValueError: if there are none to train, or their adapters are stored in 16 bits.
        """
        self._layers = list(lora_layers(model, self._name).values())
        for tensor in (t for pair in self._trained() for t in pair):
            if tensor.dtype in HALF_PRECISION:
                raise ValueError(TOO_COARSE % (self._name, tensor.dtype))

    @torch.no_grad()
    def adjust_(self, strength: Length, context: StepContext) -> None:
        """Grow one factor of each layer and shrink the other, in place.

        Args:
            strength: alpha.
            context: with the optimizer, or the learning rate of the coming step where it does not hold the factors.

        Raises:
            ValueError: if the optimizer has no learning rate.
            RuntimeError: if no layer has gradients for both of its factors.
            NotImplementedError: if the parameters are pieces of flattened ones.
        """
        pairs = [(a, b) for a, b in self._trained() if a.grad is not None and b.grad is not None]
        if not pairs:
            raise RuntimeError(NO_GRADIENT % self._name)
        if any(t.dim() < 2 for pair in pairs for t in pair):
            raise NotImplementedError(IN_PIECES % self._name)
        gradients = norms(pairs, [t.grad for pair in pairs for t in pair])
        sign = torch.where(torch.isfinite(gradients).all(), self.growth(pairs, gradients), 0.0)
        tensors = [t for pair in pairs for t in pair]
        rates = context.rates_of(tensors, f"sam_variant={self._name!r}")
        changes = [strength * lr if i % 2 == 0 else -strength * lr for i, lr in enumerate(rates)]
        signs = [layer for layer in sign.expand(len(pairs)).unbind() for _ in "AB"]
        numbers = [change for change in changes if not isinstance(change, Tensor)]
        if len(numbers) == len(changes):
            self._changes = list(torch._foreach_mul(signs, numbers))
        else:
            self._changes = [s * change for s, change in zip(signs, changes, strict=True)]
        torch._foreach_mul_([local_shard(t) for t in tensors], list(torch._foreach_add(self._changes, 1.0)))

    def report(self) -> dict[str, Tensor]:
        """Return by what share of itself a factor grew or shrank, on average over the layers."""
        return {"rescaled": torch.stack(self._changes).abs().mean() if self._changes else torch.zeros(())}

    @abstractmethod
    def growth(self, pairs: list[Pair], gradients: Tensor) -> Tensor:
        """Return for each layer 1 where A grows and B shrinks, -1 where B grows and A shrinks, 0 where neither does.

        Args:
            pairs: A and B of each layer.
            gradients: the norms of their gradients, of shape (layers, 2).
        """

    @property
    def _name(self) -> str:
        return str(self.title).lower()

    def _trained(self) -> list[Pair]:
        """Return A and B of every adapter that is active and trained now."""
        return [(f.a, f.b) for layer in self._layers for f in active_factors(layer) if f.trained]


class NBAR(BAR):
    """nBAR (Li, Zhang, He 2024, algorithm 2): the factor with the longer gradient grows, the other one shrinks.

    It follows SAM on problems like LoRA's, where B A is a matrix (theorem 2 and section 5.2 of the paper). A layer in
    which both gradients are zero stays as it is; the algorithm as printed would let A grow.
    """

    title = "nBAR"

    def growth(self, pairs: list[Pair], gradients: Tensor) -> Tensor:
        """Return 1 where ||g_A|| >= ||g_B||, 0 where both are zero, otherwise -1."""
        g_a, g_b = gradients.unbind(1)
        return torch.where((g_a == 0) & (g_b == 0), 0.0, torch.where(g_a >= g_b, 1.0, -1.0).to(gradients.dtype))


class OBAR(BAR):
    """oBAR (Li, Zhang, He 2024, algorithm 3): the longer factor shrinks, the other one grows.

    It follows SAM on problems where the product of the factors is a number (theorem 3 and section 5.2 of the paper).
    """

    title = "oBAR"

    def growth(self, pairs: list[Pair], gradients: Tensor) -> Tensor:
        """Return -1 where ||A|| >= ||B||, otherwise 1."""
        a, b = norms(pairs, [t for pair in pairs for t in pair]).unbind(1)
        return torch.where(a >= b, -1.0, 1.0).to(gradients.dtype)


def norms(pairs: list[Pair], tensors: list[Tensor | None]) -> Tensor:
    """Return the Euclidean norm of each of the tensors that belong to the pairs' parameters.

    Returns:
        Shape (layers, 2), on their device, of the whole tensors: one reduction if they are spread over processes.
    """
    owners = as_shards([t for pair in pairs for t in pair])
    parts = [local_shard(t) for t in tensors if t is not None]
    found = torch.stack(list(torch._foreach_norm(parts, 2, dtype=accumulation_dtype(parts))))
    if isinstance(owners, Shards):
        copies = torch.tensor([owners.copies[id(p)] for p in owners], dtype=found.dtype, device=found.device)
        squares = found.square().div_(copies)
        torch.distributed.all_reduce(squares)
        found = squares.sqrt()
    return found.view(-1, 2)
