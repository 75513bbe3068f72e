# SPDX-License-Identifier: Apache-2.0
"""Recommend a radius from how fast the loss rises with it, on a few batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import nn

from hf_sam._checks import check_count, check_number
from hf_sam.config.sam_config import PLAIN, SAMConfig, variant_of
from hf_sam.engines.supported import is_sharded
from hf_sam.rho_search.loss_rises import LossRises
from hf_sam.rho_search.recommendation import RangeTest, recommend, relative_rises
from hf_sam.rho_search.trainer_copy import TrainerCopy, process_as_found
from hf_sam.step.replay import devices_of
from hf_sam.trainer.trainer import SAMTrainerMixin
from hf_sam.variants import Variant

SPREAD, POINTS = 25.0, 16
"""The default grid: from the variant's default radius divided by SPREAD to that times SPREAD, in so many points."""
NO_TRAINER = (
    "`find_rho(trainer=...)` must be a SAMTrainer, another trainer with SAMTrainerMixin, or a function without "
    "arguments that makes one, got {what}."
)
ONE_PROCESS = (
    "find_rho needs one process with whole weights, and this trainer has {what}. Run it on one device; with "
    "gradient_accumulation_steps multiplied by the number of processes a step has as many examples."
)
NO_CLEAN_GRADIENT = (
    "find_rho perturbs along the clean gradient, which sam_variant={name!r} does not compute. {way_out}."
)


def find_rho(
    trainer: SAMTrainerMixin | Callable[[], SAMTrainerMixin],
    *,
    steps: int = 30,
    batches: int = 4,
    rhos: Sequence[float] | None = None,
    share: float = 0.05,
    progress: Callable[[float], object] | None = None,
) -> RangeTest:
    """Recommend a radius to start with: the largest at which the loss rises by no more than a share of itself.

    Trains some plain steps first, because a fresh model or head tells nothing about the landscape it will train in.
    Then takes, on a few batches, the gradient at w and the losses at w + epsilon for many radii, with the same dropout
    masks (see `recommend` for what follows from them).

    All this happens to a deep copy of the trainer: model, optimizer, scheduler, scaler, data set, loss, and whatever
    else its attributes lead to. The trainer is left as it was, to the last bit, also after an interrupt, and so are the
    random streams. No callback is called, nothing is logged or saved. A copy takes as much memory again as the model,
    the optimizer's state if there is one already, and data that are held in memory (tables of `datasets` are shared).

    Out of reach of a copy are global names, attributes of classes, callbacks, and what functions close over other than
    models, optimizers, tensors and generators: what `compute_loss` changes there stays changed. A function that makes a
    trainer has none of these limits, and takes no memory for a copy: `find_rho(lambda: SAMTrainer(...))`.

    Args:
        trainer: a trainer with `SAMTrainerMixin`, ready to train, in one process; or a function that makes one, which
            is called once, and whose trainer is thrown away. Its settings say which variant, which parameters, and
            whether the micro-batches of a step share one perturbation; the others (rho itself, schedule, gate,
            `ascent_fraction`) make no difference. A variant that remembers gradients (Friendly-SAM) begins with these
            batches.
        steps: plain optimizer steps, >= 0; fewer in a run that is shorter. More where the learning rate warms up
            slowly.
        batches: how many times as many examples as share one perturbation, >= 1; fewer if there are no more.
        rhos: the radii to try, > 0; None for 16 from 1/25 to 25 times the variant's default.
        share: of the clean loss, by which the loss may rise, > 0.
        progress: called with how much of the work is done, in [0, 1], now and then.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if it is out of range, if there are no data, or if the clean loss is no number above 0.
        NotImplementedError: for several processes, sharded weights, variants that are not along a clean gradient, and
            trainers that hold what cannot be copied, such as an iterator or an open file.
    """
    steps = check_count("find_rho", "steps", steps, least=0, wrong_type=TypeError)
    batches = check_count("find_rho", "batches", batches, least=1, wrong_type=TypeError)
    share = check_number("find_rho", "share", share, above=0)
    radii = None if rhos is None else _radii(rhos)
    started = time.perf_counter()
    with process_as_found(_devices(trainer)):
        subject, check = _own(trainer)
        config, variant = _measurable(subject)
        variant.prepare(subject.model.named_parameters())
        variant.prepare_model(subject.model)
        radii = radii or _grid(variant.default_rho)
        run = LossRises(subject, config, variant, radii, steps, batches, progress=progress, check=check)
        run.train()
    loss = run.mean_loss()
    rho, reason = recommend(radii, relative_rises(run.losses, run.rises), share, loss)
    reason += f" (batches: {len(run.losses)}, plain steps before them: {run.taken})."
    losses, rises = tuple(run.losses), tuple(map(tuple, run.rises))
    seconds = time.perf_counter() - started
    return RangeTest(rho, reason, share, config.sam_variant, run.taken, radii, losses, rises, seconds)


def _devices(trainer: Any) -> list[torch.device]:
    """Return the devices whose random streams training draws from."""
    if isinstance(trainer, SAMTrainerMixin):
        return devices_of([*trainer.model.parameters(), torch.empty(0, device=trainer.args.device)])
    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator()
    return [torch.device(str(kind), torch.accelerator.current_device_index())]


def _own(trainer: Any) -> tuple[Any, Callable[..., object] | None]:
    """Return a trainer to train with, and what has to be checked before it trains."""
    if isinstance(trainer, SAMTrainerMixin):
        _measurable(trainer)  # before a copy takes time and memory
        copied = TrainerCopy(trainer)
        return copied.trainer, copied.check
    if isinstance(trainer, (type, nn.Module)) or not callable(trainer):
        raise TypeError(NO_TRAINER.format(what=type(trainer).__name__))
    made = trainer()
    if not isinstance(made, SAMTrainerMixin):
        raise TypeError(NO_TRAINER.format(what=f"a function that makes {type(made).__name__}"))
    return made, None


def _measurable(trainer: Any) -> tuple[SAMConfig, Variant]:
    """Return the settings and the variant of a trainer that can be measured; raise for others."""
    config: SAMConfig = trainer.sam_config
    if config.sam_variant == PLAIN:
        raise ValueError(f"find_rho needs a variant, and sam_variant={PLAIN!r} has none. Use sam_variant='sam'.")
    variant = variant_of(config)
    if variant.passes != "two":
        way_out = 'Use rho="auto"' if variant.adapts_radius else f"Its default is rho={variant.default_rho:g}"
        raise NotImplementedError(NO_CLEAN_GRADIENT.format(name=config.sam_variant, way_out=way_out))
    engine, processes = trainer.accelerator.distributed_type, trainer.args.world_size
    if processes > 1:
        raise NotImplementedError(ONE_PROCESS.format(what=f"{processes} processes"))
    if engine == DistributedType.DEEPSPEED or is_sharded(trainer):
        what = "DeepSpeed" if engine == DistributedType.DEEPSPEED else "sharded weights"
        raise NotImplementedError(ONE_PROCESS.format(what=what))
    return config, variant


def _radii(rhos: Sequence[float]) -> tuple[float, ...]:
    """Return the radii to try, ascending."""
    if not rhos:
        raise ValueError("`find_rho(rhos=...)` must hold at least one radius > 0, got none.")
    return tuple(sorted({check_number("find_rho", "rhos", rho, above=0) for rho in rhos}))


def _grid(default: float) -> tuple[float, ...]:
    """Return radii around a variant's default, ascending."""
    step = SPREAD ** (2 / (POINTS - 1))
    return tuple(float(f"{default / SPREAD * step**i:.3g}") for i in range(POINTS))
