# SPDX-License-Identifier: Apache-2.0
"""What does a training step send over the network, plain and with SAM, for each engine and scope?

`tests/distributed/test_scaling.py` counts the same on processes of this machine: it has to be equal to the byte.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple


class Weights(NamedTuple):
    """What is trained. All but the first three matter in small models only.

    Attributes:
        number: of weights.
        gradient: bytes of one weight's gradient as it is reduced.
        gathered: bytes of one weight as it is gathered.
        kept: bytes that FSDP2 gathers once in a pass and keeps to its end.
        tied: bytes of gradients that FSDP2 reduces twice, as their weights are in two groups.
        tensors: number of tensors.
        buffers: bytes that DDP broadcasts before a pass whose gradients it will reduce.
    """

    number: float
    gradient: int = 4
    gathered: int = 4
    kept: int = 0
    tied: int = 0
    tensors: int = 0
    buffers: int = 0


class Collective(NamedTuple):
    """Collectives of one kind.

    Attributes:
        kind: "all-reduce", "all-gather", "reduce-scatter" or "broadcast".
        size: bytes of the whole tensors, gathered or not yet scattered.
        over: "all" processes, the "shards" of one copy of the weights, or the "copies" of one shard.
        when: what it can hide behind: the "forward" or "backward" part of its pass, or "nothing".
    """

    kind: str
    size: float
    over: str = "all"
    when: str = "nothing"


class Step(NamedTuple):
    """One optimizer step.

    Attributes:
        passes: what each pass over its micro-batches sends.
        rest: what is sent between and after them.
    """

    passes: list[list[Collective]]
    rest: list[Collective]

    def sizes(self) -> dict[str, float]:
        """Return the bytes of the whole tensors by kind."""
        sizes: Counter[str] = Counter()
        for each in (*self.rest, *(c for one in self.passes for c in one)):
            sizes[each.kind] += each.size  # type: ignore[assignment]
        return {kind: size for kind, size in sizes.items() if size}


NORM = Collective("all-reduce", 8)
"""The squared length of the gradient, in float64."""
ENGINES = ("DDP", "FSDP2", "HSDP", "ZeRO 1", "ZeRO 2")
SCOPES = ("batch", "device", "micro_batch")


def step(engine: str, scope: str | None, weights: Weights, *, micro_batches: int = 1, shards: int = 1) -> Step | None:
    """Return what one optimizer step sends, None where the engine refuses the scope.

    Args:
        engine: one of `ENGINES`.
        scope: `sam_scope`; None for the plain Trainer.
        weights: what is trained.
        micro_batches: of one optimizer step on a process.
        shards: processes that share one copy of the weights, for HSDP.
    """
    if engine == "DDP":
        return _ddp(scope, weights)
    if scope == "device" or (scope == "micro_batch" and engine.startswith("ZeRO")):
        return None
    if engine.startswith("ZeRO"):
        return _zero(scope, weights, micro_batches if engine == "ZeRO 2" else 1)
    return _fully_sharded(scope, weights, micro_batches, shards if engine == "HSDP" else None)


def _ddp(scope: str | None, weights: Weights) -> Step:
    """DDP reduces at the last micro-batch of a pass; not in a first pass whose perturbation is the process's own."""
    once = [
        Collective("broadcast", weights.buffers),
        Collective("all-reduce", weights.gradient * weights.number, when="backward"),
        Collective("all-reduce", 4 * weights.tensors),  # which of them were used
    ]
    passes = {None: [once], "batch": [once, once]}.get(scope, [[], once])
    return Step(passes, [])


def _fully_sharded(scope: str | None, weights: Weights, micro_batches: int, shards: int | None) -> Step:
    """FSDP2 gathers the weights for each forward and again for each backward.

    It reduces at the last micro-batch. HSDP, as transformers sets it up, leaves only the copies' reduction for that.
    """
    over = "all" if shards is None else "shards"
    gathered, reduced = weights.gathered * weights.number, weights.gradient * weights.number + weights.tied
    gathers = [
        Collective("all-gather", gathered, over, "forward"),
        Collective("all-gather", gathered - weights.kept, over, "backward"),
    ]
    reductions = micro_batches if scope == "micro_batch" else 1
    scattered = reductions if shards is None else micro_batches
    one = gathers * micro_batches + [Collective("reduce-scatter", reduced, over, "backward")] * scattered
    if shards is not None:
        one += [Collective("all-reduce", reduced / shards, "copies", "backward")] * reductions
    return Step([one], []) if scope is None else Step([one, one], [NORM] * reductions)


def _zero(scope: str | None, weights: Weights, reductions: int) -> Step:
    """DeepSpeed gathers the new weights once a step; SAM reads both whole gradients in float32, tensor by tensor."""
    once = [Collective("all-reduce", weights.gradient * weights.number)] * reductions
    rest = [
        Collective("all-gather", weights.gathered * weights.number),
        Collective("all-reduce", 8),  # whether it overflowed, and its norm
    ]
    if scope is None:
        return Step([once], rest)
    return Step([once, once], [*rest, *[Collective("all-reduce", 4 * weights.number)] * 2])
