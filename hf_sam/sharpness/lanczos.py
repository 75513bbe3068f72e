# SPDX-License-Identifier: Apache-2.0
"""Krylov spaces of the Hessian (Lanczos), and the eigenvalue at an end of the spectrum from one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_sam.sharpness.loss_function import LossFunction

KEPT = 20
"""Most vectors in memory."""


@dataclass
class Space:
    """An orthonormal basis in which the Hessian is tridiagonal.

    Attributes:
        basis: one vector more than there are diagonal entries, unless the space is exhausted.
        diagonal, off_diagonal: of the tridiagonal matrix; the last entry of `off_diagonal` leads out of the space.
    """

    basis: list[Tensor]
    diagonal: list[float]
    off_diagonal: list[float]

    def pairs(self) -> tuple[Any, Any]:
        """Return eigenvalues of the tridiagonal matrix, ascending, and eigenvectors, one per column."""
        from scipy.linalg import eigh_tridiagonal

        return eigh_tridiagonal(np.array(self.diagonal), np.array(self.off_diagonal[: len(self.diagonal) - 1]))  # type: ignore[no-any-return]


def started(start: Tensor) -> Space:
    """Return the space of one vector."""
    return Space([start / start.norm()], [], [])


def grow(loss_function: LossFunction, space: Space) -> bool:
    """Add a dimension, for one product with the Hessian; return whether there is another one.

    Each new vector is made orthogonal to all others, twice, so that no eigenvalue comes up again as a ghost.
    """
    last = space.basis[-1]
    image = loss_function.products(last[None])[0]
    space.diagonal.append(float(image @ last))
    for _ in range(2):
        for each in space.basis:
            image.sub_(each, alpha=float(image @ each))
    length = float(image.norm())
    scale = max(map(abs, space.diagonal))
    space.off_diagonal.append(length)
    if length <= 10 * torch.finfo(loss_function.dtype).eps * scale or len(space.diagonal) == loss_function.size:
        return False
    space.basis.append(image.div_(length))
    return True


def extreme(loss_function: LossFunction, which: str, tol: float, seed: int) -> tuple[float, Tensor, float, bool]:
    """Return the eigenvalue at an end of the spectrum, its vector, ||H v - lambda v||, and whether it is good enough.

    It stops at the first product after which the residual is at most `tol` times the largest eigenvalue in magnitude,
    or when there are `KEPT` vectors.

    Args:
        loss_function: the loss.
        which: "LA", "SA" or "LM".
        tol: see above.
        seed: of the first vector.
    """
    generator = torch.Generator().manual_seed(seed)
    space = started(
        torch.randn(loss_function.size, generator=generator, dtype=loss_function.dtype).to(loss_function.device)
    )
    while True:
        more = grow(loss_function, space)
        values, columns = space.pairs()
        at = {"LA": -1, "SA": 0, "LM": int(np.argmax(np.abs(values)))}[which]
        residual = space.off_diagonal[-1] * abs(float(columns[-1, at])) if more else 0.0
        enough = not more or residual <= tol * float(np.abs(values).max())
        if enough or len(values) == KEPT:
            return float(values[at]), _vector(space, columns[:, at]), residual, enough


def _vector(space: Space, coordinates: Any) -> Tensor:
    vector = torch.zeros_like(space.basis[0])
    for share, each in zip(coordinates.tolist(), space.basis, strict=False):
        vector.add_(each, alpha=share)
    return vector.div_(vector.norm())
