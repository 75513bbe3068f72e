# SPDX-License-Identifier: Apache-2.0
"""Whether a loss has a second derivative, and what is said where it has none.

Autograd says so itself for most operations of torch. Of custom functions, such as fused kernels, it often takes the
gradient for a constant and says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, once_differentiable

ONCE = (
    "The loss has no second derivative, which eigenvalues, trace and density need ({}). Use "
    "attn_implementation='eager' and plain PyTorch in place of what can be differentiated once (fused kernels, custom "
    "functions, cdist), or measure what needs gradients only: sam_sharpness, worst_case, average_case."
)
ONCE_DIFFERENTIABLE = once_differentiable(lambda ctx: None).__code__
"""Of every function that the decorator makes. What a code object is called is known from Python 3.11 on."""


@contextmanager
def second_derivative() -> Iterator[None]:
    """Say in one line what to do where something of the loss can be differentiated only once.

    Raises:
        NotImplementedError: in place of what autograd says.
    """
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        said = str(error).partition("\n")[0]
        if not any(word in said for word in ("derivative", "differentiat", "not implemented")):
            raise
        raise NotImplementedError(ONCE.format(said)) from error


def custom_functions(loss: Tensor) -> list[Any]:
    """Return the custom functions (`torch.autograd.Function`) that a loss was computed with."""
    found: list[Any] = []
    seen: set[Any] = set()
    todo: list[Any] = [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
            if isinstance(node, BackwardCFunction):
                found.append(node._forward_cls)  # type: ignore[attr-defined]
    return list(dict.fromkeys(found))


def check_custom_functions(loss_function: Any, model: Any, batch: Any) -> None:
    """Refuse custom functions that can be differentiated once, by comparing a product with two gradients.

    Args:
        loss_function: whose Hessian is asked for.
        model: with the copies in it.
        batch: of examples.

    Raises:
        NotImplementedError: naming the functions.
    """
    loss, _ = loss_function._loss_of(model, batch)
    custom = custom_functions(loss)
    if not custom:
        return
    names = ", ".join(each.__name__ for each in custom)
    if any(each.backward.__code__ is ONCE_DIFFERENTIABLE for each in custom):
        raise NotImplementedError(ONCE.format(f"{names} is marked with @once_differentiable"))
    w = loss_function.weights()
    v = torch.randn(len(w), generator=torch.Generator().manual_seed(0), dtype=w.dtype).to(w.device)
    step = (1e-5 if w.dtype == torch.float64 else 3e-3) * float(w.norm()) or 1e-3
    v = v / v.norm()
    with second_derivative():
        grads = loss_function._first(loss, create_graph=True)
    product = torch.cat([p.reshape(-1) for p in loss_function._second(grads, loss_function.split(v), False)])
    ends = []
    for sign in (1.0, -1.0):
        with loss_function.moved(sign * step * v):
            ends.append(loss_function._first(loss_function._loss_of(model, batch)[0]))
    slope = torch.cat([(a - b).reshape(-1) / (2 * step) for a, b in zip(*ends, strict=True)])
    noise = 100 * torch.finfo(w.dtype).eps * float(torch.cat([g.reshape(-1) for g in ends[0]]).norm()) / step
    if float((slope - product).norm()) > max(0.2 * float(slope.norm()), noise):
        raise NotImplementedError(ONCE.format(f"the gradient of {names} is taken for a constant"))
