# SPDX-License-Identifier: Apache-2.0
"""What should twenty steps of SAM give? The papers' formulas in NumPy, with derivatives by hand.

Shares nothing with `hf_sam`: no torch, no autograd, subtraction instead of a stored copy (in float64 the difference
between the two is below every tolerance used here). The peers' stabilisers (1e-12 or 1e-16 beside the norm) are left
out, as in the papers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Arrays = dict[str, np.ndarray]
Epsilon = Callable[[Arrays, Arrays, float], Arrays]


def new_weights(rng: np.random.Generator, inputs: int = 5, hidden: int = 7, classes: int = 3) -> Arrays:
    """Return weights for `loss_and_gradient`; "gain.weight" is one-dimensional and called a weight."""
    return {
        "first.weight": rng.normal(size=(hidden, inputs)),
        "first.bias": rng.normal(size=hidden),
        "gain.weight": 1 + 0.3 * rng.normal(size=hidden),
        "second.weight": rng.normal(size=(classes, hidden)),
        "second.bias": rng.normal(size=classes),
    }


def loss_and_gradient(w: Arrays, x: np.ndarray, y: np.ndarray) -> tuple[float, Arrays]:
    """Mean cross entropy of softmax(second(gain * tanh(first(x)))), and its derivative."""
    n = len(x)
    hidden = np.tanh(x @ w["first.weight"].T + w["first.bias"])
    scaled = hidden * w["gain.weight"]
    logits = scaled @ w["second.weight"].T + w["second.bias"]
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    loss = -log_p[np.arange(n), y].mean()

    d_logits = np.exp(log_p)
    d_logits[np.arange(n), y] -= 1
    d_logits /= n
    d_scaled = d_logits @ w["second.weight"]
    d_before_tanh = d_scaled * w["gain.weight"] * (1 - hidden**2)
    return loss, {
        "first.weight": d_before_tanh.T @ x,
        "first.bias": d_before_tanh.sum(axis=0),
        "gain.weight": (d_scaled * hidden).sum(axis=0),
        "second.weight": d_logits.T @ scaled,
        "second.bias": d_logits.sum(axis=0),
    }


def norm(arrays: Arrays) -> float:
    """Return the Euclidean norm of all arrays taken as one vector."""
    return float(np.sqrt(sum((a**2).sum() for a in arrays.values())))


# ----------------------------------------------------------------------------------------------------------------------
# Directions
# ----------------------------------------------------------------------------------------------------------------------
def sam(w: Arrays, g: Arrays, rho: float) -> Arrays:
    """Foret et al. 2021, eq. 2 with p = 2: rho g / ||g||."""
    return {k: rho * g[k] / norm(g) for k in w}


def _asam(t: Arrays, g: Arrays, rho: float) -> Arrays:
    """Kwon et al. 2021, eq. 8 with p = 2: rho T^2 g / ||T g||."""
    length = norm({k: t[k] * g[k] for k in g})
    return {k: rho * t[k] ** 2 * g[k] / length for k in g}


def asam_paper(w: Arrays, g: Arrays, rho: float, eta: float = 0.01) -> Arrays:
    """T = |w| + eta on weights; T = 1 on whatever has one dimension."""
    return _asam({k: abs(w[k]) + eta if w[k].ndim > 1 else np.ones_like(w[k]) for k in w}, g, rho)


def asam_code(w: Arrays, g: Arrays, rho: float, eta: float = 0.01) -> Arrays:
    """The authors' code: T = |w| + eta where the name contains "weight", whatever the shape."""
    return _asam({k: abs(w[k]) + eta if "weight" in k else np.ones_like(w[k]) for k in w}, g, rho)


def asam_davda54(w: Arrays, g: Arrays, rho: float) -> Arrays:
    """`adaptive=True` of davda54/sam and pytorch-optimizer: T = |w| everywhere, no eta."""
    return _asam({k: abs(w[k]) for k in w}, g, rho)


# ----------------------------------------------------------------------------------------------------------------------
# Optimizers, as in the documentation of torch.optim.SGD and AdamW
# ----------------------------------------------------------------------------------------------------------------------
class SGD:
    def __init__(self, lr: float, momentum: float, weight_decay: float) -> None:
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.velocity: Arrays = {}

    def step(self, w: Arrays, h: Arrays) -> None:
        for k in w:
            d = h[k] + self.weight_decay * w[k]
            self.velocity[k] = self.momentum * self.velocity[k] + d if k in self.velocity else d
            w[k] = w[k] - self.lr * self.velocity[k]


class AdamW:
    def __init__(self, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.t = 0
        self.m: Arrays = {}
        self.v: Arrays = {}

    def step(self, w: Arrays, h: Arrays) -> None:
        (b1, b2), self.t = self.betas, self.t + 1
        for k in w:
            self.m[k] = b1 * self.m.get(k, 0.0) + (1 - b1) * h[k]
            self.v[k] = b2 * self.v.get(k, 0.0) + (1 - b2) * h[k] ** 2
            m_hat, v_hat = self.m[k] / (1 - b1**self.t), self.v[k] / (1 - b2**self.t)
            w[k] = w[k] * (1 - self.lr * self.weight_decay) - self.lr * m_hat / (np.sqrt(v_hat) + self.eps)


def sam_step(w: Arrays, x: np.ndarray, y: np.ndarray, epsilon: Epsilon, rho: float, optimizer: SGD | AdamW) -> float:
    """Take one step in place; return the clean loss."""
    loss, g = loss_and_gradient(w, x, y)
    e = epsilon(w, g, rho)
    _, h = loss_and_gradient({k: w[k] + e[k] for k in w}, x, y)
    optimizer.step(w, h)
    return loss
