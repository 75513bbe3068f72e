# SPDX-License-Identifier: Apache-2.0
"""Random perturbation, a control.

Is it the direction that helps, or any step of that length?
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_sam.step_context import StepContext
from hf_sam.variants.base import Length, LengthOf, OnePass
from hf_sam.vectors.shards import Shards, is_dtensor, local_shard
from hf_sam.vectors.stochastic_rounding import seed_from
from hf_sam.vectors.vectors import Ascent, along, global_norm


class RandomDirection(OnePass):
    """A perturbation of length rho in a random direction, at the price of a plain step (compare Li et al. 2024).

    epsilon = rho * z / ||z||_2 with z Gaussian and one norm over all parameters, so all directions are equally likely.
    A method that does not beat it owes its gain to noise in the weights.

    z changes from step to step and is the same at each micro-batch of a step. It comes from streams of its own, seeded
    by the run's seed, the step, the number of the parameter and that of the shard. So the run's own random numbers stay
    the same, a resumed run needs no state for z, and processes that hold the same weights move them alike. Shards on
    several processes draw different numbers, so z depends on the number of processes.
    """

    title = "Random perturbation"
    citation = """@article{li2024revisiting,
    title   = {Revisiting Random Weight Perturbation for Efficiently Improving Generalization},
    author  = {Tao Li and Qinghua Tao and Weihao Yan and Yingwen Wu and Zehao Lei and Kun Fang and Mingzhen He
               and Xiaolin Huang},
    journal = {Transactions on Machine Learning Research},
    year    = {2024},
    url     = {https://arxiv.org/abs/2404.00357}
}"""

    @torch.no_grad()
    def direction_before_pass(
        self, params: list[Tensor], rho: Length | LengthOf, context: StepContext
    ) -> tuple[list[Tensor], Ascent] | None:
        """Return rho * z / ||z|| for all of `params`."""
        z = []
        for number, param in enumerate(params):
            w = local_shard(param)
            generator = torch.Generator("cpu" if w.is_meta else w.device)
            generator.manual_seed(seed_from(context.seed, context.step, number, _shard_of(param, params)))
            z.append(torch.empty_like(w).normal_(generator=generator))
        length = rho(params, z) if callable(rho) else rho
        return params, along(z, length, global_norm(z, params))


def _shard_of(param: Tensor, params: list[Tensor]) -> int:
    """Return a number that two processes have in common if and only if they hold the same part of `param`.

    FSDP1 does not say which part a process holds. The number is right for the process groups that FSDP1 makes itself,
    in which neighbours share one copy of the weights.
    """
    if not isinstance(params, Shards):
        return 0
    if not is_dtensor(param):
        return torch.distributed.get_rank() % (torch.distributed.get_world_size() // params.copies[id(param)])
    mesh, number = param.device_mesh, 0  # type: ignore[attr-defined]
    for placement, size, at in zip(param.placements, mesh.shape, mesh.get_coordinate(), strict=True):  # type: ignore[attr-defined]
        if not placement.is_replicate():
            number = number * size + at
    return number
