# SPDX-License-Identifier: Apache-2.0
"""Which rho should a run start with? See how fast the loss rises with it, on a few batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from accelerate.utils import DistributedType

from hf_sam._checks import check_count, check_number
from hf_sam.config.sam_config import PLAIN, SAMConfig, variant_of
from hf_sam.engines.supported import is_sharded
from hf_sam.rho_search.loss_rises import LossRises
from hf_sam.rho_search.recommendation import RangeTest, recommend, relative_rises
from hf_sam.rho_search.trainer_snapshot import left_as_found
from hf_sam.trainer.trainer import SAMTrainerMixin
from hf_sam.variants import Variant

SPREAD, POINTS = 25.0, 16
"""The default grid: from the direction's default radius divided by SPREAD to that times SPREAD, in so many points."""
ONE_PROCESS = (
    "find_rho needs one process with whole weights, and this trainer has {what}. Run it on one device; with "
    "gradient_accumulation_steps multiplied by the number of processes a step has as many examples."
)
NO_CLIMB = "find_rho climbs along the clean gradient, which sam_variant={name!r} does not compute. {way_out}."


def find_rho(
    trainer: SAMTrainerMixin,
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

    The trainer is left as it was, to the last bit: weights, buffers, gradients, optimizer, scheduler, scaler, state and
    random streams, also after an interrupt. No callback is called, nothing is logged or saved. Memory beyond a plain
    step: two copies of the trained weights, and one of the state of an optimizer that is there already.

    Args:
        trainer: a trainer with `SAMTrainerMixin`, ready to train, in one process. Its settings say which direction,
            which parameters, and whether the micro-batches of a step share one perturbation; the others (rho itself,
            schedule, gate, `ascent_fraction`) make no difference. A direction that remembers gradients
            (Friendly-SAM) begins with these batches.
        steps: plain optimizer steps, >= 0; fewer in a run that is shorter. More where the learning rate warms up
            slowly.
        batches: how many times as many examples as share one perturbation, >= 1; fewer if there are no more.
        rhos: the radii to try, > 0; None for 16 from 1/25 to 25 times the direction's default.
        share: of the clean loss, by which the loss may rise, > 0.
        progress: called with how much of the work is done, in [0, 1], now and then.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if it is out of range, if there are no data, or if the clean loss is no number above 0.
        NotImplementedError: for several processes, sharded weights, and directions that are not along a clean gradient.
    """
    config, direction = _measurable(trainer)
    steps, batches = (
        check_count("find_rho", "steps", steps, least=0, wrong_type=TypeError),
        check_count("find_rho", "batches", batches, least=1, wrong_type=TypeError),
    )
    share = check_number("find_rho", "share", share, above=0)
    radii = _radii(rhos, direction.default_rho)
    started = time.perf_counter()
    run = LossRises(trainer, config, direction, radii, steps, batches, progress)
    with left_as_found(trainer) as undo:
        run.train(undo)
    loss = run.mean_loss()
    rho, reason = recommend(radii, relative_rises(run.losses, run.rises), share, loss)
    reason += f" (batches: {len(run.losses)}, plain steps before them: {run.taken})."
    losses, rises = tuple(run.losses), tuple(map(tuple, run.rises))
    seconds = time.perf_counter() - started
    return RangeTest(rho, reason, share, config.sam_variant, run.taken, radii, losses, rises, seconds)


def _measurable(trainer: Any) -> tuple[SAMConfig, Variant]:
    """Return the settings and the direction of a trainer that can be measured; raise for others."""
    if not isinstance(trainer, SAMTrainerMixin):
        raise TypeError(
            "`find_rho(trainer=...)` must be a SAMTrainer, or another trainer with SAMTrainerMixin, "
            f"got {type(trainer).__name__}."
        )
    config = trainer.sam_config
    if config.sam_variant == PLAIN:
        raise ValueError(f"find_rho needs a direction, and sam_variant={PLAIN!r} has none. Use sam_variant='sam'.")
    direction = variant_of(config)
    if direction.passes != "two":
        way_out = 'Use rho="auto"' if direction.adapts_radius else f"Its default is rho={direction.default_rho:g}"
        raise NotImplementedError(NO_CLIMB.format(name=config.sam_variant, way_out=way_out))
    engine, processes = trainer.accelerator.distributed_type, trainer.args.world_size
    if processes > 1:
        raise NotImplementedError(ONE_PROCESS.format(what=f"{processes} processes"))
    if engine == DistributedType.DEEPSPEED or is_sharded(trainer):
        what = "DeepSpeed" if engine == DistributedType.DEEPSPEED else "sharded weights"
        raise NotImplementedError(ONE_PROCESS.format(what=what))
    direction.prepare(trainer.model.named_parameters())
    direction.prepare_model(trainer.model)
    return config, direction


def _radii(rhos: Sequence[float] | None, default: float) -> tuple[float, ...]:
    """Return the radii to try, ascending."""
    if rhos is None:
        step = SPREAD ** (2 / (POINTS - 1))
        return tuple(float(f"{default / SPREAD * step**i:.3g}") for i in range(POINTS))
    if not rhos:
        raise ValueError("`find_rho(rhos=...)` must hold at least one radius > 0, got none.")
    return tuple(sorted({check_number("find_rho", "rhos", rho, above=0) for rho in rhos}))
