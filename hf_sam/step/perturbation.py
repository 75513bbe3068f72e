# SPDX-License-Identifier: Apache-2.0
"""The move of the weights to w + epsilon and the exact way back, with one copy of them and no more."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from hf_sam.vectors.flat import split_as
from hf_sam.vectors.stochastic_rounding import StochasticRounding
from hf_sam.vectors.vectors import HALF_PRECISION, Ascent, as_vector, chunks, contiguous_as, snapshot


class Observer(Protocol):
    """What a perturbation shows to those who measure it."""

    def applies(self, ascent: Ascent) -> None:
        """Look at epsilon as it was asked for, before the weights move."""

    def undoes(self, number: int, owners: list[Tensor], w: list[Tensor], copies: list[Tensor]) -> None:
        """Look at a chunk before it moves back.

        Args:
            number: of the chunk, in the order of `vectors.chunks`; the last one comes first.
            owners: the parameters it belongs to.
            w: the weights at w + epsilon, which may be overwritten.
            copies: the weights at w.
        """


class Perturbation:
    """One way to w + epsilon and back, chunk by chunk; a context that ends with the weights at w.

    The copy of a chunk is taken and noted before the chunk moves, so that `undo` is right after an interrupt at any
    point, and right when it is called again. It goes back the way it came: parameters that share memory, which moved
    one after the other, come back too.

    Casts that autocast keeps of the weights are dropped whenever these move: a context around both passes would go on
    with the old ones.

    Args:
        params: the parameters to move; nothing has moved yet.
        rounding: how weights of 16 bits are rounded; to nearest by default.
        observer: who measures.
        first: number of the first parameter, where these are a part of those that move: the rounding's chance differs.
    """

    def __init__(
        self,
        params: list[Tensor],
        rounding: StochasticRounding | None = None,
        observer: Observer | None = None,
        *,
        first: int = 0,
    ) -> None:
        self._params, self._rounding, self._observer = params, rounding, observer
        self._numbers = {id(p): number for number, p in enumerate(params, start=first)} if rounding is not None else {}
        self._away: list[tuple[list[Tensor], list[Tensor], list[Tensor]]] = []

    @torch.no_grad()
    def apply(self, ascent: Ascent) -> Tensor:
        """Move the weights to w + epsilon, in place. The direction's memory may be overwritten, unless it is lent.

        Args:
            ascent: where to.

        Returns:
            Whether the gradient could be climbed along (0-dim bool): where not, w + epsilon is w.
        """
        if self._observer is not None:
            self._observer.applies(ascent)
        for owners, w, direction in chunks(self._params, contiguous_as(self._params, ascent.direction)):
            # A copy of its own: the gradient's memory may belong to others (a flat buffer, a bucket of DDP).
            self._away.append((owners, w, snapshot(w)))
            if self._rounding is None:
                _add_epsilon_(w, direction, ascent)
            else:
                self._add_rounded_(self._rounding, owners, w, direction, ascent)
        torch.clear_autocast_cache()
        return ascent.usable

    @torch.no_grad()
    def undo(self, *, observed: bool = True) -> None:
        """Move the weights back to w, to the last bit.

        Args:
            observed: whether the observer looks at each chunk on the way.
        """
        while self._away:
            owners, w, copies = self._away[-1]
            if observed and self._observer is not None:
                self._observer.undoes(len(self._away) - 1, owners, w, copies)
            torch._foreach_copy_(w, copies)
            self._away.pop()
        torch.clear_autocast_cache()

    def __enter__(self) -> Perturbation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.undo(observed=False)
        except BaseException:  # Ctrl-C in the few instructions before the copy
            self.undo(observed=False)
            raise

    def _add_rounded_(
        self, rounding: StochasticRounding, owners: list[Tensor], w: list[Tensor], direction: list[Tensor], to: Ascent
    ) -> None:
        """Add epsilon to a chunk, rounding the weights of 16 bits in it by chance."""
        for owner, part, d in zip(owners, w, direction, strict=True):
            if part.dtype in HALF_PRECISION:
                rounding.add_(self._numbers[id(owner)], part, d, to.scale)
            else:
                _add_epsilon_([part], [d], to)


def _add_epsilon_(w: list[Tensor], direction: list[Tensor], ascent: Ascent) -> None:
    if ascent.scale.device.type == "cpu":  # where reading a number is free
        if ascent.usable:
            torch._foreach_add_(w, direction, alpha=ascent.scale.item())
        return
    # inf * 0 is nan, where the gradient cannot be climbed along.
    epsilon = torch.mul(as_vector(direction), ascent.scale).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    torch._foreach_add_(w, split_as(w, epsilon))
