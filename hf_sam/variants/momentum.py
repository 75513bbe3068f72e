# SPDX-License-Identifier: Apache-2.0
"""Momentum-SAM: climb against the optimizer's momentum, which is known before the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_sam._checks import check_number
from hf_sam.step_context import StepContext
from hf_sam.variants.asam import ASAM, ETA
from hf_sam.variants.base import Length, LengthOf, OnePass
from hf_sam.vectors.shards import Shards, local_shard
from hf_sam.vectors.vectors import Ascent, along, global_norm, same_kind, snapshot

MOMENTUM = ("exp_avg", "momentum_buffer")
"""What optimizers call their first moment: the Adam family and Lion; SGD, RMSprop and Muon."""
WITHOUT = ("ASGD", "Adadelta", "Adagrad", "LBFGS", "Rprop")
OWN_FORMAT = ("bitsandbytes",)
"""Packages whose optimizers keep the first moment under another name and mostly in 8 bits."""
NEEDED = (
    "Momentum-SAM climbs against the optimizer's first moment, so it needs an optimizer that keeps one, unquantised, "
    "in the shape of the weights: {problem}. Take AdamW or another Adam (optim='adamw_torch_fused'), Lion, or SGD or "
    "RMSprop with momentum (optim='sgd', optim_args='momentum=0.9'); or another variant, such as 'sam'."
)


class Momentum(OnePass):
    """Momentum-SAM (MSAM; Becker et al. 2025, algorithm 1): a sharpness-aware step for the price of a plain one.

    epsilon = -rho * m / ||m||_2, one norm over all parameters, where m is the optimizer's first moment, without the
    correction of its bias: only the direction counts. A move against m looks ahead to where the optimizer is going, as
    Nesterov's momentum does, but much further: across a narrow valley, whose other side is uphill. The paper shows that
    the opposite sign hurts.

    The paper keeps the weights perturbed between steps. Here they are perturbed during the pass alone: the gradients
    are the same, and no other code sees perturbed weights. m is read, never changed or copied. Before the optimizer's
    first step on a parameter it has no m, and stays where it is.

    The paper uses radii of 0.3 to 3, and none while the learning rate warms up, when m is mostly noise.

    Args:
        adaptive: see m through the size of each weight, as ASAM does: epsilon = -rho * T^2 m / ||T m||, with T = |w| +
            eta for parameters of two or more dimensions and 1 for the others. Needs a copy of m during the climb.
        eta: added to |w|, >= 0; for `adaptive`.

    Raises:
        TypeError: if eta is no number.
        ValueError: if an option is out of range.
    """

    title = "Momentum-SAM"
    auto_by_default = True
    default_rho = 0.5
    auto_strength = 3.0
    off_in_warmup = True
    citation = """@inproceedings{becker2025momentumsam,
    title     = {Momentum-{SAM}: Sharpness Aware Minimization without Computational Overhead},
    author    = {Marlon Becker and Frederick Altrock and Benjamin Risse},
    booktitle = {Advances in Neural Information Processing Systems},
    year      = {2025},
    url       = {https://arxiv.org/abs/2401.12033}
}"""

    def __init__(self, *, adaptive: bool = False, eta: float = ETA) -> None:
        if not isinstance(adaptive, bool):
            raise ValueError(f"`Momentum(adaptive=...)` must be true or false, got {adaptive!r}.")
        self.adaptive, self.eta = adaptive, check_number("Momentum", "eta", eta, least=0)
        self.scale_free = adaptive
        self._seen_through_weights = ASAM(eta=self.eta)

    def check_optimizer(self, optimizer: Any, params: list[Tensor]) -> None:
        """Raise for an optimizer that keeps no first moment of a parameter that it has stepped on.

        Raises:
            ValueError: with the optimizer's name and the ways out.
        """
        refuse_optimizer(optimizer, params)
        for p in params:
            first_moment(optimizer, p)

    @torch.no_grad()
    def direction_before_pass(
        self, params: list[Tensor], rho: Length | LengthOf, context: StepContext
    ) -> tuple[list[Tensor], Ascent] | None:
        """Return -rho * m / ||m||, or as `adaptive` says; None before the optimizer's first step.

        Raises:
            ValueError: if the optimizer keeps no first moment of a parameter that it has stepped on.
        """
        moments = first_moments(context.optimizer, params)
        m = [found for found in moments if found is not None]
        if not m:
            return None
        moved = params
        if len(m) < len(params):
            moved = same_kind(params, [p for p, found in zip(params, moments, strict=True) if found is not None])
        length = rho(moved, m) if callable(rho) else rho
        if self.adaptive:
            return moved, self._seen_through_weights.ascend(moved, snapshot(m), -length)
        return moved, along(m, -length, global_norm(m, moved))._replace(lent=True)


def first_moments(optimizer: Any, params: list[Tensor]) -> list[Tensor | None]:
    """Return `first_moment` of each parameter; at once where all lie as Adams keep them, so that there is no doubt.

    Raises:
        ValueError: as `refuse_optimizer` and `first_moment` do.
    """
    found: list[Tensor | None] = []
    states: Any = {} if optimizer is None or isinstance(params, Shards) else optimizer.state
    for p in params:
        m = states.get(p, {}).get(MOMENTUM[0])
        plain = type(m) is Tensor and m.shape == p.shape and m.device == p.device and m.layout == torch.strided
        found.append(m if plain and m.is_floating_point() else None)
    if all(m is not None for m in found):
        return found
    refuse_optimizer(optimizer, params)
    return [first_moment(optimizer, p) for p in params]


def first_moment(optimizer: Any, param: Tensor) -> Tensor | None:
    """Return this process's part of the optimizer's first moment of `param`, not to be changed.

    Returns:
        None while the optimizer has not stepped on `param`.

    Raises:
        ValueError: if it has, and there is no first moment in a floating dtype, in the shape and place of `param`.
    """
    state = {key: value for key, value in optimizer.state.get(param, {}).items() if value is not None}
    if not state:
        return None
    found = next((state[key] for key in MOMENTUM if key in state), None)
    if not isinstance(found, Tensor) or not _fits(found, param):
        kept = ", ".join(sorted(map(str, state)))
        problem = f"{_name(optimizer)} keeps {kept} for a parameter of shape {tuple(param.shape)}"
        raise ValueError(NEEDED.format(problem=problem))
    return local_shard(found)


def refuse_optimizer(optimizer: Any, params: list[Tensor] | None = None) -> None:
    """Raise for an optimizer that will keep no first moment, as far as that shows before its first step.

    Args:
        optimizer: a torch optimizer, or a wrapper that shows its `state` and `param_groups`; None where there is none.
        params: the parameters that are to move.

    Raises:
        ValueError: with the optimizer's name and the ways out.
    """
    if optimizer is None:
        problem = "there is no optimizer (a loop of one's own gives it as context=StepContext(optimizer=optimizer))"
        raise ValueError(NEEDED.format(problem=problem))
    name = _name(optimizer)
    groups = [group for group in optimizer.param_groups if group["params"]]
    if type(_unwrapped(optimizer)).__module__.split(".")[0] in OWN_FORMAT:
        raise ValueError(NEEDED.format(problem=f"{name} keeps it in a format of its own"))
    if name in WITHOUT or any("beta1" in group and group["beta1"] is None for group in groups):  # Adafactor's
        raise ValueError(NEEDED.format(problem=f"{name} keeps none"))
    if any(not group.get("momentum", 1) for group in groups):
        raise ValueError(NEEDED.format(problem=f"{name} with momentum=0 keeps none"))
    if params and not {id(p) for group in groups for p in group["params"]} & {id(p) for p in params}:
        raise ValueError(NEEDED.format(problem=f"{name} holds none of the model's own parameters, but maybe copies"))


def _fits(m: Tensor, param: Tensor) -> bool:
    """Return whether `m` can be added to `param` as it is, which a subclass of Tensor (another format) cannot."""
    part, w = local_shard(m), local_shard(param)
    plain = type(part) is Tensor and part.layout == torch.strided and part.is_floating_point()
    return plain and part.shape == w.shape and part.device == w.device


def _unwrapped(optimizer: Any) -> Any:
    """Return the optimizer inside accelerate's wrapper."""
    wrapped = type(optimizer).__module__.split(".")[0] == "accelerate" and hasattr(optimizer, "optimizer")
    return optimizer.optimizer if wrapped else optimizer


def _name(optimizer: Any) -> str:
    return type(_unwrapped(optimizer)).__name__
