# SPDX-License-Identifier: Apache-2.0
"""Stochastic rounding: add a perturbation to 16-bit weights so that the sum is right on average."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

CHUNK = 2**22
"""Elements rounded at once on an accelerator: 100 MB of intermediate results at most, and launches that pay."""

# Of float32, seen as an integer.
_EXPONENT = 0x7F800000
_BIAS, _MANTISSA_BITS = 127, 23
# Of float16: its least and largest exponent, and the bits after the point.
_HALF_LEAST, _HALF_LARGEST, _HALF_BITS = -14, 15, 10


def seed_from(*parts: int) -> int:
    """Return a seed that depends on all of `parts`, and differs from the run's own seeds."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:7], "big")  # room for the number of a parameter on top


class StochasticRounding:
    """An adder for weights of 16 bits that rounds up or down by chance, so that the expected value is the exact sum.

    *Experimental*: no measured run has gained by it yet.

    The sum itself is taken in float32. A sum that the weight's type can hold stays as it is; one beyond its largest
    number may become infinite, as in rounding to nearest.

    The random bits come from a private stream per parameter. So the run's own streams stay where they are, and all
    processes that hold the same parameter round it alike. Shards of one parameter draw the same bits for different
    elements: every element is still right on average, and no more is promised.

    Args:
        seed: of the streams; to be different at every step.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._parameter: int | None = None
        self._generator: torch.Generator | None = None

    @torch.no_grad()
    def add_(self, parameter: int, w: Tensor, direction: Tensor, scale: Tensor) -> None:
        """Add `scale * direction` to `w` in place; add nothing where that product is not finite.

        Args:
            parameter: the number of the parameter that `w` is, or is a part of; its parts come in order.
            w: weights in bfloat16 or float16.
            direction: of the same shape.
            scale: 0-dim tensor on the same device, which is not read on the host.
        """
        if parameter != self._parameter or self._generator is None:
            self._generator = self._generator or torch.Generator("cpu" if w.is_meta else w.device)
            self._generator.manual_seed(self._seed + parameter)
            self._parameter = parameter
        parts = [(w, direction)]
        if w.is_contiguous() and direction.is_contiguous():
            parts = list(zip(*(torch.split(t.view(-1), CHUNK) for t in (w, direction)), strict=True))
        for w_part, d_part in parts:
            exact = d_part.to(torch.float32, copy=True).mul_(scale)
            exact.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0).add_(w_part)  # inf * 0 is nan
            rounded = _to_half if w.dtype == torch.float16 else _to_bfloat16
            w_part.copy_(rounded(exact, self._generator))


def _to_bfloat16(exact: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 by chance to numbers that bfloat16 holds, in place.

    A bfloat16 is the upper half of a float32. A random number is added to the lower half, which is then cut off: it
    carries over with a probability that is the share cut off. These bits are the magnitude, so this is right for both
    signs; the carry is right into the next power of two and out of the denormals. The lower half of an infinity, and of
    the NaN of a bfloat16, is zero.
    """
    noise = torch.randint(2**16, exact.shape, generator=generator, dtype=torch.int32, device=exact.device)
    exact.view(torch.int32).add_(noise).bitwise_and_(-(2**16))
    return exact


def _to_half(exact: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 by chance to numbers that float16 holds.

    The unit is the distance between neighbours in float16; below 2^-14 (the denormals) it is constant. In this unit a
    number is a whole number and a fraction, and the fraction is the probability of going on to the next whole number.
    All but the random draw is exact, as the units are powers of two.
    """
    least, largest = ((_BIAS + e) << _MANTISSA_BITS for e in (_HALF_LEAST, _HALF_LARGEST))
    power_of_two = exact.view(torch.int32).bitwise_and(_EXPONENT).clamp_(least, largest).view(torch.float32)
    unit = power_of_two.mul_(2.0**-_HALF_BITS)
    exact.div_(unit)
    whole = exact.trunc()
    chance = torch.rand(exact.shape, generator=generator, device=exact.device)
    further = (chance < (exact - whole).abs_()).to(torch.float32).copysign_(exact)
    return whole.add_(further).mul_(unit)
