# SPDX-License-Identifier: Apache-2.0
"""DDP on two real processes: is each scope the step it claims to be, and at the communication it claims?"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.launch import Results, distance, run_jobs
from tests.distributed.worker import Job
from tests.promises.runs import differences
from tests.tolerances import RELATIVE

pytestmark = pytest.mark.distributed

CLOSE = RELATIVE[torch.float32]
STILL = ["without_dropout"]  # masks are drawn per process: only without them can processes be compared with one
IN_TURN = [*range(24)]
# Two processes read batches in turn: this order gives each the four neighbours that one process would see together.
DEALT = [i for start in range(0, 24, 8) for i in (0, 1, 4, 5, 2, 3, 6, 7) for i in (start + i,)]


def batches(size: int, accumulation: int, **more: Any) -> dict[str, Any]:
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, **more}


def job(name: str, size: int, accumulation: int = 1, **more: Any) -> Job:
    arguments = batches(size, accumulation, **more.pop("arguments", {}))
    return Job(name, prepare=[*STILL, *more.pop("prepare", [])], arguments=arguments, **more)


SAM, ASAM, DEVICE, MICRO = (
    {"rho": 0.1},
    {"rho": 0.5, "sam_variant": "asam"},
    {"rho": 0.1, "sam_scope": "device"},
    {"rho": 0.1, "sam_scope": "micro_batch"},
)

SCOPES = ("batch", "device", "micro_batch")

ONE = [
    job("sam", 8, sam=SAM),
    job("asam", 8, sam=ASAM),
    job("plain", 8, sam=None),
    job("pairs of 4", 4, 2, sam=MICRO),
    job("pairs of 4, in turn", 4, 2, sam=MICRO, order=IN_TURN),
    job("quadruples of 2", 2, 4, sam=MICRO),
]
CHECKPOINTED = [
    (f"{mode} {scope}", {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}})
    for mode, reentrant in (("reentrant", True), ("non-reentrant", False))
    for scope in ("batch", "device")
]
QUIET = {"counted": True, "arguments": {"logging_steps": 1000}}
TWO = [
    job("batch", 4, sam=SAM),
    job("batch, accumulated", 2, 2, sam=SAM),
    job("batch, asam", 4, sam=ASAM),
    job("batch, synchronised at each", 2, 2, sam=SAM, arguments={"accelerator_config": {
        "gradient_accumulation_kwargs": {"sync_each_batch": True}}}),
    job("device", 4, sam=DEVICE),
    job("device, accumulated", 2, 2, sam=DEVICE, order=DEALT),
    job("device, out of memory first", 5, sam=DEVICE, order=IN_TURN, bad={"largest": 4},
        arguments={"auto_find_batch_size": True}),
    job("micro", 2, 2, sam=MICRO),
    job("unused batch", 4, sam=SAM, prepare=["with_unused_layer"], arguments={"ddp_find_unused_parameters": True}),
    job("unused device", 4, sam=DEVICE, prepare=["with_unused_layer"], arguments={"ddp_find_unused_parameters": True}),
    job("static", 4, sam=SAM, arguments={"ddp_static_graph": True}),
    job("static device", 4, sam=DEVICE, arguments={"ddp_static_graph": True}),
    job("static accumulated", 2, 2, sam=SAM, arguments={"ddp_static_graph": True}),
    *(job(name, 4, sam={"rho": 0.1, "sam_scope": name.split()[-1]}, arguments=more) for name, more in CHECKPOINTED),
    job("quiet plain", 2, 2, sam=None, **QUIET),
    *(job(f"quiet {scope}", 2, 2, sam={"rho": 0.1, "sam_scope": scope}, **QUIET) for scope in SCOPES),
]  # fmt: skip


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_jobs(tmp_path_factory.mktemp("one"), 1, ONE)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_jobs(tmp_path_factory.mktemp("two"), 2, TWO)


def test_there_really_are_two_processes(one: Results, two: Results) -> None:
    assert [(r["world"], r["engine"]) for r in two["batch"]] == [(2, "MULTI_CPU")] * 2
    assert [(r["world"], r["engine"]) for r in one["sam"]] == [(1, "NO")]


SAME = {
    "batch": "sam",
    "batch, accumulated": "sam",
    "batch, asam": "asam",
    "batch, synchronised at each": "sam",
    "device": "pairs of 4",
    "device, accumulated": "pairs of 4, in turn",
    "device, out of memory first": "pairs of 4, in turn",  # the model is wrapped again for the smaller batch
    "micro": "quadruples of 2",
    "unused batch": "sam",
    "unused device": "pairs of 4",
    "static": "sam",
    "reentrant batch": "sam",
    "non-reentrant batch": "sam",
    "reentrant device": "pairs of 4",
    "non-reentrant device": "pairs of 4",
}


@pytest.mark.parametrize("name", SAME)
def test_two_processes_train_as_one(name: str, one: Results, two: Results) -> None:
    expected = one[SAME[name]][0]
    for found in two[name]:
        found = {k: v for k, v in found.items() if "unused" not in k}
        assert found["steps"] == expected["steps"] == 6
        assert distance(found, expected) <= CLOSE


@pytest.mark.parametrize("name", [k for k in SAME if k != "device"])
def test_the_step_is_not_the_plain_one_nor_another_scopes(name: str, one: Results, two: Results) -> None:
    """The test above could fail: runs that ought to differ are far apart."""
    found = {k: v for k, v in two[name][0].items() if "unused" not in k}
    others = {"plain", "sam", "pairs of 4", "quadruples of 2"} - {SAME[name], "sam" if "asam" in name else ""}
    assert all(distance(found, one[other][0]) > 1e-3 for other in others if "in turn" not in SAME[name])


def test_scope_device_without_accumulation_is_scope_micro_batch_of_one_process_to_the_bit(
    one: Results, two: Results
) -> None:
    assert distance(two["device"][0], one["pairs of 4"][0]) == 0.0


@pytest.mark.parametrize("name", SAME)
def test_processes_have_the_same_bits_after_every_step(name: str, two: Results) -> None:
    first, second = two[name]
    assert len(first["after_steps"]) == 6
    assert first["after_steps"] == second["after_steps"]


@pytest.mark.parametrize(("name", "reason"), [("static device", "sam_scope='device'"), ("static accumulated", "accum")])
def test_a_static_graph_that_could_not_synchronise_its_first_pass_is_refused(
    name: str, reason: str, two: Results
) -> None:
    message = two.error(name)
    assert message.startswith("NotImplementedError: DDP with `ddp_static_graph=True`")
    assert reason in message
    assert "no static graph" in message


@pytest.mark.parametrize("scope", ["device", "micro_batch"])
def test_a_local_ascent_adds_no_communication(scope: str, two: Results) -> None:
    plain, sharp = (dict(two[name][0]["collectives"]) for name in ("quiet plain", f"quiet {scope}"))
    plain["c10d::allreduce_"] += 1  # for the totals of the run, when it is over
    assert sharp == plain


def test_a_common_ascent_adds_one_gradient_reduction_a_step(two: Results) -> None:
    """And DDP's own broadcast of the buffers before the pass, which a model without buffers does not have."""
    plain, sharp = (dict(two[name][0]["collectives"]) for name in ("quiet plain", "quiet batch"))
    steps = two["quiet batch"][0]["steps"]
    assert plain["c10d::allreduce_"] % steps == 0  # a few buckets a step
    assert sharp.pop("c10d::allreduce_") == 2 * plain.pop("c10d::allreduce_") + 1  # and one for the totals of the run
    assert sharp.pop("c10d::broadcast_") == plain.pop("c10d::broadcast_") + steps
    assert sharp == plain


def test_every_process_logs_the_averages_over_all(one: Results, two: Results) -> None:
    for name in ("batch", "device"):
        logs = [[{k: v for k, v in e.items() if k.startswith("sam/")} for e in r["history"]] for r in two[name]]
        assert logs[0] == logs[1]
        assert len(logs[0][0]) == 6
    expected, found = (r["history"][0] for r in (one["sam"][0], two["batch"][0]))
    assert {k: pytest.approx(expected[k], rel=1e-4, abs=1e-6) for k in expected if k.startswith("sam/")}.items() <= (
        found.items()
    )
    expected, found = (r["history"][0] for r in (one["pairs of 4"][0], two["device"][0]))
    assert found["sam/epsilon_norm"] == pytest.approx(0.1, rel=1e-5)
    assert found["sam/sharpness"] == pytest.approx(expected["sam/sharpness"], rel=1e-4)


def test_differences_see_a_bit(two: Results) -> None:
    """What the comparisons of whole runs rest on."""
    assert any(name.startswith("weight") for name in differences(two["batch"][0], two["device"][0]))
