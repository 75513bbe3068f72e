# SPDX-License-Identifier: Apache-2.0
"""How do the weights get to w + epsilon and back to w, to the last bit, with one copy of them and no more?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hf_sam.variants.base import Ascent
from hf_sam.vectors.stochastic_rounding import StochasticRounding
from hf_sam.vectors.vectors import HALF_PRECISION, chunks, contiguous_as

Visit = Callable[[int, list[Tensor], list[Tensor], list[Tensor]], None]
AT_ONCE = 32
"""Tensors of a lent direction that an accelerator scales at once: few launches, and a small part of a large model."""


class Perturbation:
    """A way up and back, piece by piece.

    The copy of a piece is taken and noted before the piece moves, so that `come_back` is right after an interrupt at
    any point, and right when it is called again. It goes back the way it came: parameters that share memory, which
    moved one after the other, come back too.
    """

    def __init__(self, params: list[Tensor]) -> None:
        """Prepare to move `params`; nothing has moved yet."""
        self._params = params
        self._away: list[tuple[list[Tensor], list[Tensor], list[Tensor]]] = []

    @torch.no_grad()
    def apply(self, ascent: Ascent, rounding: StochasticRounding | None = None) -> None:
        """Move the weights to w + epsilon, in place. The direction's memory may be overwritten, unless it is lent.

        Args:
            ascent: where to.
            rounding: how weights of 16 bits are rounded; to nearest by default.
        """
        numbers = {id(p): number for number, p in enumerate(self._params)} if rounding is not None else {}
        for owners, w, direction in chunks(self._params, contiguous_as(self._params, ascent.direction)):
            # A copy of its own: the gradient's memory may belong to others (a flat buffer, a bucket of DDP).
            self._away.append((owners, w, [piece.clone() for piece in w]))
            if rounding is None or not any(piece.dtype in HALF_PRECISION for piece in w):
                _add_epsilon_(w, direction, ascent)
                continue
            for owner, piece, d in zip(owners, w, direction, strict=True):
                if piece.dtype in HALF_PRECISION:
                    rounding.add_(numbers[id(owner)], piece, d, ascent.scale)
                else:
                    _add_epsilon_([piece], [d], ascent)

    @torch.no_grad()
    def undo(self, visit: Visit | None = None) -> None:
        """Move the weights back to w.

        Args:
            visit: called for each piece before it moves back, with its number in the order of `vectors.chunks`, the
                parameters it belongs to, the weights at w + epsilon (which it may overwrite) and the copy of w.
        """
        while self._away:
            owners, w, copies = self._away[-1]
            if visit is not None:
                visit(len(self._away) - 1, owners, w, copies)
            torch._foreach_copy_(w, copies)
            self._away.pop()


def bring_back(perturbation: Perturbation) -> None:
    """Come back, also when Ctrl-C lands in the few instructions before the copy."""
    try:
        perturbation.undo()
    except BaseException:
        perturbation.undo()
        raise


def _add_epsilon_(w: list[Tensor], direction: list[Tensor], ascent: Ascent) -> None:
    if ascent.scale.device.type == "cpu":  # where reading a number is free
        if ascent.usable:
            torch._foreach_add_(w, direction, alpha=ascent.scale.item())
        return
    if not ascent.lent:
        torch._foreach_mul_(direction, ascent.scale)
        _add_finite_(w, direction)
        return
    for start in range(0, len(w), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        _add_finite_(w[some], list(torch._foreach_mul(direction[some], ascent.scale)))


def _add_finite_(w: list[Tensor], epsilon: list[Tensor]) -> None:
    """Add `epsilon`, which is overwritten."""
    for e in epsilon:
        e.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)  # inf * 0 is nan
    torch._foreach_add_(w, epsilon)
