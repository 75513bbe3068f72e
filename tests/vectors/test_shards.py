# SPDX-License-Identifier: Apache-2.0
"""Sharded parameters and their reduction modes, on a process group of one. Several processes: tests/distributed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from hf_sam.engines.gradient_sync import GradientSync
from hf_sam.vectors.shards import Shards, as_shards, is_dtensor, local_shard
from hf_sam.vectors.vectors import chunks, global_norm, same_kind, sum_of


def test_plain_parameters_stay_a_plain_list() -> None:
    params = list(nn.Linear(2, 2).parameters())
    assert as_shards(params) is params
    assert same_kind(params, params[:1]) == params[:1]
    assert not is_dtensor(params[0])


def test_the_local_part_is_the_same_memory_outside_of_autograd(group: None) -> None:
    mesh = init_device_mesh("cpu", (1,))
    tensor = distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]).requires_grad_()
    part = local_shard(tensor)
    part.mul_(2)
    assert not part.requires_grad
    assert torch.equal(tensor.full_tensor(), torch.full((4, 3), 2.0))


@pytest.mark.parametrize(("placement", "copies"), [(Shard(0), 1), (Shard(1), 1), (Replicate(), 1)])
def test_copies_are_counted_by_placement(placement: object, copies: int, group: None) -> None:
    mesh = init_device_mesh("cpu", (1,))
    params = as_shards([distribute_tensor(torch.ones(4, 3), mesh, [placement])])
    assert isinstance(params, Shards)
    assert list(params.copies.values()) == [copies]


def test_partial_sums_are_refused(group: None) -> None:
    from torch.distributed.tensor import DTensor

    tensor = DTensor.from_local(torch.ones(2), init_device_mesh("cpu", (1,)), [Partial()])
    with pytest.raises(NotImplementedError, match="cannot be perturbed"):
        as_shards([tensor])


def test_a_sum_weighs_each_piece_by_the_processes_that_hold_it(group: None) -> None:
    """Neighbours that are held by different numbers of processes are never one piece."""
    params = [torch.full((3,), 1.0), torch.full((2,), 2.0), torch.full((5,), 3.0), torch.full((1,), 4.0)]
    copies = [1, 4, 4, 2]
    shards = Shards(params, {id(p): n for p, n in zip(params, copies, strict=True)})
    assert [len(owners) for owners, *_ in chunks(shards)] == [1, 2, 1]
    expected = 3 * 1 + (2 * 4 + 5 * 9) / 4 + 16 / 2
    assert global_norm([p.clone() for p in params], shards).item() == pytest.approx(expected**0.5, rel=1e-6)
    assert sum_of([1.0, 1.0, 1.0], shards).item() == pytest.approx(1 + 1 / 4 + 1 / 2)
    assert isinstance(same_kind(shards, params[:2]), Shards)


def fsdp2() -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    fully_shard(net[0])
    return fully_shard(net)


def switches(sync: GradientSync) -> tuple[bool, bool]:
    return sync.replicated, sync.sharded


def test_a_bare_model_has_no_switches() -> None:
    sync = GradientSync(nn.Linear(1, 1))
    assert switches(sync) == (False, False)
    assert list(sync.mode()) == []
    assert not sync.averages


def test_ddp_reduces_where_it_is_told_and_every_mode_comes_back(group: None) -> None:
    net = DistributedDataParallel(nn.Linear(1, 1))
    sync = GradientSync(net, flag=SimpleNamespace(sync_gradients=True))
    assert switches(sync) == (True, False)
    with sync.each_process_alone():
        assert not net.require_backward_grad_sync
        assert not sync.averages
    assert net.require_backward_grad_sync
    with net.no_sync(), sync.all_together():  # for shards only
        assert not net.require_backward_grad_sync
    with pytest.raises(KeyError), sync.each_process_alone():
        raise KeyError
    assert sync.averages


def test_fsdp2_reduces_where_it_is_told_and_every_mode_comes_back(group: None) -> None:
    net, flag = fsdp2(), SimpleNamespace(sync_gradients=False)
    sync = GradientSync(net, flag)
    assert switches(sync) == (False, True)
    net.set_requires_gradient_sync(False)
    assert set(sync.mode()) == {False}
    with sync.each_process_alone():  # for replicas only
        assert set(sync.mode()) == {False}
    with sync.all_together():
        assert set(sync.mode()) == {True}
    assert set(sync.mode()) == {False}
    assert len(sync.mode()) == 5  # two groups with two switches, and the flag
    net.set_requires_all_reduce(True)
    assert sorted(sync.mode()) == [False] * 3 + [True] * 2
