# SPDX-License-Identifier: Apache-2.0
"""Is the model of a step, from which the tables of docs/scaling.md are computed, plausible?"""

from __future__ import annotations

import pytest

from scripts.benchmarks.common import step_time
from scripts.benchmarks.common.step_time import Machine
from scripts.benchmarks.common.traffic import ENGINES, SCOPES, Weights, step

SLOW = Machine(network=3e9)
BIG = Weights(1e9)


@pytest.mark.parametrize("engine", ENGINES)
def test_sam_computes_and_sends_at_least_as_much(engine: str) -> None:
    plain = step(engine, None, BIG, shards=8)
    assert plain is not None
    for scope in SCOPES:
        sharp = step(engine, scope, BIG, shards=8)
        if sharp is None:
            continue
        assert (len(plain.passes), len(sharp.passes)) == (1, 2)
        assert all(sharp.sizes()[kind] >= size for kind, size in plain.sizes().items())
        for tokens in (100, 10_000, 1_000_000):
            found = step_time.ratio(engine, scope, tokens, 64, SLOW)
            assert found is not None
            assert found > 1


def test_one_device_sends_nothing() -> None:
    assert [step_time.sent(engine, "batch", 1e9, 1) for engine in ENGINES] == [0] * len(ENGINES)


def test_without_a_network_to_wait_for_a_step_costs_two() -> None:
    for engine, scope in (("DDP", "batch"), ("DDP", "device"), ("FSDP2", "batch"), ("HSDP", "batch")):
        assert step_time.ratio(engine, scope, 1e6, 64, Machine()) == pytest.approx(2, abs=0.01)


def test_scope_device_saves_below_the_tokens_that_cover_the_reduction_and_only_there() -> None:
    covering = step_time.covering_tokens(64, SLOW)

    def times(tokens: float) -> list[float | None]:
        return [step_time.step_seconds("DDP", scope, tokens, 64, SLOW) for scope in ("batch", "device")]

    batch, device = times(covering * 1.01)
    assert batch == pytest.approx(device, rel=1e-6)
    batch, device = times(covering / 2)
    assert batch is not None
    assert device is not None
    assert device < 0.85 * batch


def test_what_an_engine_holds_is_what_it_spreads() -> None:
    assert step_time.held("DDP", 64) == step_time.held("FSDP2", 1) == (16, 4)
    assert step_time.held("FSDP2", 64) == (16 / 64, 4 / 64)
    assert step_time.held("HSDP", 64) == step_time.held("FSDP2", 8)
    assert step_time.held("ZeRO 2", 64)[0] < step_time.held("ZeRO 1", 64)[0]
