# SPDX-License-Identifier: Apache-2.0
"""Does every set-up that two passes would get wrong refuse to start, with the reason and the way out (promise 13)?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from hf_sam import SAMConfig, SAMTrainer, SAMTrainerMixin
from hf_sam.engines.supported import ENGINES
from hf_sam.trainer.unsupported import ONLINE_TRAINERS, refuse_arguments, refuse_trainer

IN_BACKWARD = [o for o in OptimizerNames if "lomo" in o.value or "layerwise" in o.value]


class Layers(nn.Module):
    """A model the Trainer takes, with one part under test."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"part": part})


def arguments(tmp_path: Path, **kwargs: Any) -> TrainingArguments:
    return TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none", **kwargs)


def refusal(model: nn.Module, args: TrainingArguments, kind: type = SAMTrainer, **kwargs: Any) -> str:
    with pytest.raises(NotImplementedError) as caught:
        kind(model, args, **kwargs)
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------------------------
# Arguments: before the Trainer is built
# ----------------------------------------------------------------------------------------------------------------------
def test_the_list_of_optimizers_that_update_in_backward_is_not_empty() -> None:
    assert {"lomo", "adalomo", "galore_adamw_layerwise"} <= {o.value for o in IN_BACKWARD}


@pytest.mark.parametrize("optim", IN_BACKWARD, ids=lambda o: o.value)
def test_optimizers_that_update_in_backward_are_refused_before_anything_is_made(
    optim: OptimizerNames, tmp_path: Path
) -> None:
    message = refusal(nn.Linear(1, 1), arguments(tmp_path, optim=optim.value))
    assert f"`optim='{optim.value}'` updates the weights during the backward pass" in message
    assert "adamw_torch_fused" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("optim", [o for o in OptimizerNames if o not in IN_BACKWARD], ids=lambda o: o.value)
def test_optimizers_that_update_in_step_are_accepted(optim: OptimizerNames, tmp_path: Path) -> None:
    refuse_arguments(arguments(tmp_path, optim=optim.value))


@pytest.mark.parametrize("axis", ["cp_size", "sp_size"])
def test_context_and_sequence_parallelism_are_refused_before_anything_is_made(axis: str, tmp_path: Path) -> None:
    args = arguments(tmp_path)
    args.parallelism_config = ParallelismConfig(**{axis: 2})
    message = refusal(nn.Linear(1, 1), args)
    assert "shard each batch in place" in message
    assert "Use shorter sequences" in message
    assert not (tmp_path / "out").exists()


OFFLOAD = {"device": "cpu", "pin_memory": True}
REFUSED_SETTINGS = {
    "stage 3": ({"zero_optimization": {"stage": 3}}, "stage 3"),
    "offload": ({"zero_optimization": {"stage": 1, "offload_optimizer": OFFLOAD}}, "offload_optimizer.device: cpu"),
    "parameters offloaded": ({"zero_optimization": {"stage": 2, "offload_param": OFFLOAD}}, "offload_param"),
    "old offload": ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, "cpu_offload"),
    "round robin": ({"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, "round_robin"),
    "zenflow": ({"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1}}}, "zenflow"),
    "deepcompile": ({"compile": {"deepcompile": True}}, "deepcompile"),
    "tensor parallel": ({"tensor_parallel": {"autotp_size": 2}}, "autotp_size: 2"),
    "experts": ({"expert_parallel": {"enabled": True}}, "expert_parallel"),
    "1-bit": ({"optimizer": {"type": "OneBitAdam"}}, "optimizer.type: OneBitAdam"),
    "boundary": ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation"),
    "bf16 in fp32": (
        {
            "zero_optimization": {"stage": 1},
            "bf16": {"enabled": True},
            "data_types": {"grad_accum_dtype": "fp32"},
        },
        "Use ZeRO stage 2",
    ),
}


@pytest.mark.parametrize(("settings", "reason"), REFUSED_SETTINGS.values(), ids=REFUSED_SETTINGS)
@pytest.mark.parametrize("in_a_file", [False, True], ids=["dict", "file"])
def test_what_deepspeed_cannot_do_is_refused_before_anything_is_made(
    settings: dict[str, Any], reason: str, in_a_file: bool, tmp_path: Path
) -> None:
    """DeepSpeed is set on finished arguments: building them with it needs the package."""
    args = arguments(tmp_path)
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps(settings))
    args.deepspeed = str(file) if in_a_file else settings
    message = refusal(nn.Linear(1, 1), args)
    assert message.startswith("DeepSpeed")
    assert reason in message
    assert "Train without" in message or "Use ZeRO stage" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_deepspeed_is_not_refused_for_what_is_switched_off(stage: int, tmp_path: Path) -> None:
    args = arguments(tmp_path)
    off = {"offload_optimizer": {"device": "none"}, "offload_param": {}, "round_robin_gradients": False}
    in_fp32 = {"data_types": {"grad_accum_dtype": "fp32"}, "bf16": {"enabled": "auto"}}
    args.deepspeed = {"zero_optimization": {"stage": stage, **off}, "tensor_parallel": {"autotp_size": 1}, **in_fp32}
    refuse_arguments(args)


def test_a_model_that_deepspeed_spread_at_load_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    model.weight.ds_id = 0
    assert "stage 3" in refusal(model, arguments(tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_mixture_of_experts_of_deepspeeds_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    model.weight.allreduce = False
    assert "mixture of experts" in refusal(model, arguments(tmp_path))


# ----------------------------------------------------------------------------------------------------------------------
# Models, optimizers and trainers: at construction
# ----------------------------------------------------------------------------------------------------------------------
SPARSE = {
    "embedding": lambda: nn.Embedding(4, 2, sparse=True),
    "bag": lambda: nn.EmbeddingBag(4, 2, mode="sum", sparse=True),
}


@pytest.mark.parametrize("make", SPARSE.values(), ids=SPARSE)
def test_sparse_gradients_are_refused_by_module_name(make: Any, tmp_path: Path) -> None:
    message = refusal(Layers(make()), arguments(tmp_path))
    assert message == "Sparse gradients are not supported: build 'encoder.part' with sparse=False."


def test_complex_weights_are_refused_by_name(tmp_path: Path) -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, dtype=torch.complex64))

    assert refusal(Layers(Complex()), arguments(tmp_path)).startswith(
        "Complex weights are not supported: hold 'encoder.part.w' as two real numbers"
    )


def test_a_dense_embedding_is_accepted(tmp_path: Path) -> None:
    SAMTrainer(Layers(nn.Embedding(4, 2)), arguments(tmp_path))


def test_a_model_without_storage_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(nn.Linear(1, 1), arguments(tmp_path))
    trainer.model = nn.Linear(1, 1, device="meta")
    with pytest.raises(NotImplementedError, match=r"a model on meta .*Load the model on one device"):
        refuse_trainer(trainer, SAMConfig())


def test_a_model_on_two_devices_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(nn.Linear(1, 1), arguments(tmp_path))
    trainer.model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, device="meta"))
    with pytest.raises(NotImplementedError, match=r"a model on cpu, meta .*sam_variant='none'"):
        refuse_trainer(trainer, SAMConfig())


class Lomo(torch.optim.SGD):
    """An optimizer of a name that is known."""


class AdaLomo(torch.optim.SGD):
    """The other one."""


@pytest.mark.parametrize("kind", [Lomo, AdaLomo])
def test_a_given_optimizer_that_updates_in_backward_is_refused(kind: type, tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    message = refusal(model, arguments(tmp_path), optimizers=(kind(model.parameters(), lr=0.1), None))
    assert message.startswith(f"{kind.__name__} updates the weights during the backward pass")


def test_a_given_class_of_optimizer_that_updates_in_backward_is_refused(tmp_path: Path) -> None:
    refusal(nn.Linear(1, 1), arguments(tmp_path), optimizer_cls_and_kwargs=(Lomo, {"lr": 0.1}))


class PeersSAM(torch.optim.Optimizer):
    """A sharpness-aware optimizer as other libraries have them: it wraps another one, and steps twice."""

    def __init__(self, params: Any, base: type, rho: float = 0.05, **kwargs: Any) -> None:
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = base(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups


class TwoSteps(torch.optim.SGD):
    """The same by its methods."""

    def first_step(self) -> None: ...

    def second_step(self) -> None: ...


PEERS = {
    "name": lambda params: PeersSAM(params, torch.optim.SGD, lr=0.1),
    "wrapper": lambda params: type("Flat", (PeersSAM,), {})(params, torch.optim.SGD, lr=0.1),
    "methods": lambda params: TwoSteps(params, lr=0.1),
}


@pytest.mark.parametrize("make", PEERS.values(), ids=PEERS)
def test_a_sharpness_aware_optimizer_of_another_library_is_refused(make: Any, tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    message = refusal(model, arguments(tmp_path), optimizers=(make(model.parameters()), None))
    assert "is sharpness-aware itself" in message
    assert "rho as SAMConfig" in message or "radius as SAMConfig" in message
    assert not (tmp_path / "out").exists()


def test_pytorch_optimizers_sam_is_refused(tmp_path: Path) -> None:
    peer = pytest.importorskip("pytorch_optimizer")
    model = nn.Linear(1, 1)
    optimizer = peer.SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    assert "SAM is sharpness-aware itself" in refusal(model, arguments(tmp_path), optimizers=(optimizer, None))


def test_an_optimizer_with_a_rho_of_another_meaning_is_accepted(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    SAMTrainer(model, arguments(tmp_path), optimizers=(torch.optim.Adadelta(model.parameters()), None))


def test_an_optimizer_that_comes_later_is_refused_at_the_first_step(tmp_path: Path) -> None:
    class Late(SAMTrainer):
        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            self.optimizer = PeersSAM(self.model.parameters(), torch.optim.SGD, lr=0.1)
            return self.optimizer

    class Line(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return {"loss": super().forward(x).square().mean()}

    trainer = Late(Line(1, 1), arguments(tmp_path, max_steps=1), train_dataset=[{"x": torch.ones(1)}])
    with pytest.raises(NotImplementedError, match="PeersSAM is sharpness-aware itself"):
        trainer.train()


def test_gradients_by_example_are_refused_as_private(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    model.weight.grad_sample = None
    message = refusal(model, arguments(tmp_path))
    assert message.startswith("A gradient for each example of 'weight' makes training differentially private")
    assert "sam_variant='none'" in message


def test_a_package_for_privacy_is_refused_by_its_optimizer_and_its_module(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    private = type("DPOptimizer", (torch.optim.SGD,), {"__module__": "opacus.optimizers.optimizer"})
    message = refusal(model, arguments(tmp_path), optimizers=(private(model.parameters(), lr=0.1), None))
    assert message.startswith("DPOptimizer makes training differentially private")
    theirs = type("OpacusDPTrainer", (Trainer,), {"__module__": "dp_transformers.dp_utils"})
    mixed = type("Mine", (SAMTrainerMixin, theirs), {})
    assert refusal(nn.Linear(1, 1), arguments(tmp_path), mixed).startswith("Mine makes training differentially private")
    wrapped = type("GradSampleModule", (nn.Linear,), {"__module__": "opacus.grad_sample"})
    assert refusal(wrapped(1, 1), arguments(tmp_path)).startswith("GradSampleModule makes training")


# ----------------------------------------------------------------------------------------------------------------------
# Classes, processes, devices
# ----------------------------------------------------------------------------------------------------------------------
class Theirs(Trainer):
    """Somebody's trainer."""


@pytest.mark.parametrize("base", [Trainer, Theirs])
def test_a_trainer_in_front_of_the_mixin_is_refused_with_the_right_order(base: type) -> None:
    with pytest.raises(TypeError) as caught:
        type("Mine", (base, SAMTrainerMixin), {})
    assert str(caught.value).startswith(
        f"class Mine({base.__name__}, SAMTrainerMixin): {base.__name__} stands in front"
    )
    assert str(caught.value).endswith(f"class Mine(SAMTrainerMixin, {base.__name__}).")


def test_other_mixins_may_stand_in_front() -> None:
    class Other:
        pass

    type("Mine", (Other, SAMTrainerMixin, Theirs), {})
    type("Mine", (Theirs, SAMTrainer), {})  # Trainer itself still comes after the mixin


@pytest.mark.parametrize("rank", ["RANK", "LOCAL_RANK"])
def test_processes_of_a_launcher_that_do_not_know_of_each_other_are_refused(
    rank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    SAMTrainer(nn.Linear(1, 1), args)  # left over from something else: no rank
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setenv(rank, "0")
    message = refusal(nn.Linear(1, 1), args)
    assert message.startswith("The launcher has started 2 processes (WORLD_SIZE=2), but this one trains by itself")
    assert "use_cpu=True" in message
    assert not (tmp_path / "out").exists()


def test_two_gpus_in_one_process_are_refused_with_the_shorter_way_out_first(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    args._n_gpu = 2
    trainer = Trainer(nn.Linear(1, 1), args)
    with pytest.raises(NotImplementedError, match=r"CUDA_VISIBLE_DEVICES=0.*torchrun"):
        refuse_trainer(trainer, SAMConfig())


def trl_like(name: str, module: str = "trl.trainer.some_trainer") -> type:
    """Return SAM over a trainer of TRL's name and module, as a user would derive it."""
    base = type(name, (Trainer,), {"__module__": module})
    return type(f"SAM{name}", (SAMTrainerMixin, base), {"__module__": "mine"})


@pytest.mark.parametrize("name", sorted(ONLINE_TRAINERS))
def test_trainers_that_generate_their_data_are_refused(name: str, tmp_path: Path) -> None:
    message = refusal(nn.Linear(1, 1), arguments(tmp_path), trl_like(name))
    assert message.startswith(f"SAM{name} generates its data inside `training_step`")
    assert "Use an offline trainer" in message


@pytest.mark.parametrize("name", ["SFTTrainer", "DPOTrainer", "RewardTrainer"])
def test_offline_trainers_are_accepted(name: str, tmp_path: Path) -> None:
    trl_like(name)(nn.Linear(1, 1), arguments(tmp_path))


def test_a_trainer_of_the_users_own_may_have_any_name(tmp_path: Path) -> None:
    trl_like("PPOTrainer", module="my_project.trainers")(nn.Linear(1, 1), arguments(tmp_path))


def test_a_trainer_that_buffers_generated_inputs_is_refused(tmp_path: Path) -> None:
    class Buffering(Trainer):
        _buffered_inputs = None

    class Mine(SAMTrainerMixin, Buffering):
        pass

    assert "generates its data" in refusal(nn.Linear(1, 1), arguments(tmp_path), Mine)


@pytest.mark.parametrize("case", ["model", "trainer", "optimizer"])
def test_a_refusal_at_construction_makes_no_folder(case: str, tmp_path: Path) -> None:
    model = Layers(nn.Embedding(4, 2, sparse=case == "model"))
    kind = trl_like("GRPOTrainer") if case == "trainer" else SAMTrainer
    optimizer = Lomo(model.parameters(), lr=0.1) if case == "optimizer" else None
    refusal(model, arguments(tmp_path), kind, optimizers=(optimizer, None))
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------------------------
# The plain Trainer is never refused
# ----------------------------------------------------------------------------------------------------------------------
def test_variant_none_refuses_nothing(tmp_path: Path) -> None:
    plain = SAMConfig(sam_variant="none")
    SAMTrainer(Layers(nn.Embedding(4, 2, sparse=True)), arguments(tmp_path), sam_config=plain)
    trl_like("GRPOTrainer")(nn.Linear(1, 1), arguments(tmp_path), sam_config=plain)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.value)
def test_every_engine_is_refused_with_a_way_out(engine: DistributedType) -> None:
    assert "Train without" in ENGINES[engine]


def test_an_empty_tuple_among_the_arguments_is_no_trouble(tmp_path: Path) -> None:
    trainer = SAMTrainer(nn.Linear(1, 1), arguments(tmp_path), eval_dataset=())
    assert trainer.sam_config == SAMConfig()
