# SPDX-License-Identifier: Apache-2.0
"""How long does a step take, by what it computes, reads, writes and sends? A model, not a measurement.

    pass  = max(forward, what is sent in it) + max(backward, what is sent in it) + what nothing hides
    step  = passes + what is sent between them + the optimizer + SAM's own work on the weights

with 2 P T operations in a forward pass and 4 P T in a backward pass over T tokens (attention, launches and latencies
are left out), and the bytes of a ring: 2 (n - 1) / n of an all-reduce and (n - 1) / n of the others.
Every term is proportional to the number of weights P, so a ratio of two steps does not depend on it.
"""

from __future__ import annotations

from typing import NamedTuple

from scripts.benchmarks.common.traffic import Collective, Weights, step

COUNT = 1e9
"""Weights of the model whose steps are compared; their ratio is that of any large model."""
PRECISIONS = {
    "DDP": Weights(COUNT, gradient=4),  # weights in float32, computing in bf16
    "FSDP2": Weights(COUNT, gradient=2, gathered=2),
    "HSDP": Weights(COUNT, gradient=2, gathered=2),
    "ZeRO 1": Weights(COUNT, gradient=2, gathered=2),
    "ZeRO 2": Weights(COUNT, gradient=2, gathered=2),
}
"""What engines send in training with bf16, as accelerate sets them up."""
ADAMW = 28
"""Bytes that an optimizer step reads and writes for a weight: w, g, m, v in, w, m, v out, in float32."""
PERTURBATION = 40
"""Bytes that SAM does: the norm reads g; the copy of w, epsilon, w + epsilon, and the way back."""


class Machine(NamedTuple):
    """Devices and what connects them.

    Attributes:
        operations: that a device computes in a second, in training: 40 % of what an H100 or H200 can with bf16.
        memory: bytes that it reads or writes in a second.
        inside: bytes in a second over a machine's own links, as the bus bandwidth of an all-reduce.
        network: likewise between machines.
        devices: of one machine.
    """

    operations: float = 0.4 * 989e12
    memory: float = 3.35e12
    inside: float = 450e9
    network: float = 50e9
    devices: int = 8


def shards_of(engine: str, devices: int, machine: Machine) -> int:
    """Return over how many devices one copy of the weights is spread in the step of the optimizer."""
    return {"DDP": 1, "HSDP": min(devices, machine.devices)}.get(engine, devices)


def ring_bytes(collective: Collective, devices: int, shards: int) -> float:
    """Return how many bytes a device sends in a ring."""
    n = {"all": devices, "shards": shards, "copies": devices // shards}[collective.over]
    return (2 if collective.kind == "all-reduce" else 1) * (n - 1) / n * collective.size


def sent(engine: str, scope: str | None, count: float, devices: int) -> float | None:
    """Return how many bytes a device sends in one step of one micro-batch, None where the scope is refused."""
    shards = shards_of(engine, devices, Machine())
    found = step(engine, scope, PRECISIONS[engine]._replace(number=count), shards=shards)
    if found is None:
        return None
    return sum(ring_bytes(c, devices, shards) for c in (*found.rest, *(c for one in found.passes for c in one)))


def seconds(collective: Collective, devices: int, shards: int, machine: Machine) -> float:
    """Return how long a collective takes; shards of one machine each use a part of its network at the same time."""
    inside = devices <= machine.devices or (collective.over == "shards" and shards <= machine.devices)
    bandwidth = machine.inside if inside else machine.network
    if collective.over == "copies" and not inside:
        bandwidth /= shards
    return ring_bytes(collective, devices, shards) / bandwidth


def step_seconds(engine: str, scope: str | None, tokens: float, devices: int, machine: Machine) -> float | None:
    """Return how long a step over `tokens` of each device takes, None where the scope is refused."""
    shards = shards_of(engine, devices, machine)
    found = step(engine, scope, PRECISIONS[engine], shards=shards)
    if found is None:
        return None
    total = sum(seconds(c, devices, shards, machine) for c in found.rest)
    for one in found.passes:
        total += _pass_seconds(one, tokens, devices, shards, machine)
    swept = ADAMW / shards
    if scope is not None:
        swept += PERTURBATION / (1 if engine.startswith("ZeRO") else shards)  # every process moves whole weights there
    return total + COUNT * swept / machine.memory


def _pass_seconds(one: list[Collective], tokens: float, devices: int, shards: int, machine: Machine) -> float:
    forward = 2 * COUNT * tokens / machine.operations
    computing = {"forward": forward, "backward": 2 * forward, "nothing": 0.0}
    sending = dict.fromkeys(computing, 0.0)
    for collective in one:
        sending[collective.when] += seconds(collective, devices, shards, machine)
    return sum(max(computing[part], sending[part]) for part in computing)


def ratio(engine: str, scope: str, tokens: float, devices: int, machine: Machine) -> float | None:
    """Return the time of a step with SAM divided by that of a plain one, None where the scope is refused."""
    sharp, plain = (step_seconds(engine, which, tokens, devices, machine) for which in (scope, None))
    return None if sharp is None or plain is None else sharp / plain


def covering_tokens(devices: int, machine: Machine) -> float:
    """Return from how many tokens of a device on DDP's reduction hides behind the backward pass."""
    reduction = step("DDP", None, PRECISIONS["DDP"])
    time = sum(seconds(c, devices, 1, machine) for one in (reduction.passes if reduction else []) for c in one)
    return time * machine.operations / (4 * COUNT)


def held(engine: str, devices: int) -> tuple[float, float]:
    """Return the bytes of a weight, its gradient and AdamW's moments on a device, and those that SAM adds.

    DeepSpeed keeps weights and gradients in bf16, beside a part of them in float32.
    """
    if engine.startswith("ZeRO"):
        gradient = 2 if engine == "ZeRO 1" else 2 / devices
        return 2 + gradient + 12 / devices, 4  # SAM: a copy of the weights, and one whole gradient
    shards = shards_of(engine, devices, Machine())
    return 16 / shards, 4 / shards
