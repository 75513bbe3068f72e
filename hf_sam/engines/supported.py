# SPDX-License-Identifier: Apache-2.0
"""Engines and scopes that go together, and what users of the others can do instead."""

from __future__ import annotations

import os
from typing import Any

from accelerate.utils import DistributedType

from hf_sam.config.sam_config import SAMConfig, variant_of
from hf_sam.engines.deepspeed import refuse_deepspeed
from hf_sam.radius.schedules import AUTO
from hf_sam.variants import VARIANTS
from hf_sam.vectors.shards import is_dtensor

ENGINES = {
    DistributedType.MEGATRON_LM: "Megatron-LM runs forward, backward and step in one call. Train without it.",
}
KNOWN = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU", "FSDP", "DEEPSPEED")
"""Engines that run two passes as they should: one process, DDP whatever the device, FSDP, and DeepSpeed with limits."""
UNTESTED = (
    "SAMTrainer is verified in one process, under DDP, FSDP and DeepSpeed; {what} would train with untested "
    "synchronisation of the two passes. {way_out}, or pass sam_variant='none' for the plain Trainer."
)
ONE_GPU = (
    "Set CUDA_VISIBLE_DEVICES=0 before Python starts to train on one of them, or launch one process per GPU with "
    "torchrun"
)
ALONE = (
    "The launcher has started {launched} processes (WORLD_SIZE={launched}), but this one trains by itself, as the "
    "others will, into the same folder: it found no GPU of its own. Add --use_cpu (use_cpu=True) to train together on "
    "CPUs, take a machine with {launched} GPUs, or start one process."
)
ONE_PERTURBATION = (
    "Weights sharded over processes share one perturbation, so `sam_scope='device'` cannot be. Use sam_scope='batch', "
    "or DDP where the model fits on one device."
)
MIXES = (
    "`{what}` mixes the clean and the perturbed gradient, which are averaged over processes at different times in "
    "`sam_scope={scope!r}`. Use sam_scope='batch'."
)
STATIC_GRAPH = (
    "DDP with `ddp_static_graph=True` has to reduce gradients in its first backward pass, which {what} does not. "
    "{way_out}."
)
FLATTENED = (
    "FSDP1 flattens the parameters, and `{what}` needs their shapes. Use FSDP2 (fsdp_version: 2, as in "
    "scripts/accelerate/fsdp2.yaml), or sam_variant='sam' with a number for rho."
)
WHOLE_STEPS = (
    "Under DeepSpeed a step is two passes over all examples and parameters, so `{what}` cannot be. Use DDP or FSDP2 "
    "(fsdp_version: 2, as in scripts/accelerate/fsdp2.yaml), or leave it at its default."
)


def refuse_engine(trainer: Any, config: SAMConfig) -> None:
    """Raise for an engine that two passes would get wrong, alone or with these settings.

    Args:
        trainer: a constructed `transformers.Trainer`.
        config: SAM's settings.

    Raises:
        NotImplementedError: with the reason and the alternative.
    """
    from transformers.utils import is_sagemaker_mp_enabled  # costs an import of its own

    if is_sagemaker_mp_enabled():
        raise NotImplementedError(
            "SageMaker model parallelism runs forward and backward in one call of its own. Train without it."
        )
    engine, args = trainer.accelerator.distributed_type, trainer.args
    if engine in ENGINES:
        raise NotImplementedError(ENGINES[engine])
    unknown_processes = engine == DistributedType.NO and args.world_size > 1
    if engine.value not in KNOWN or unknown_processes:
        what = f"{args.world_size} processes under {engine.value}"
        raise NotImplementedError(UNTESTED.format(what=what, way_out="Use DDP or FSDP2"))
    if args.n_gpu > 1:
        what = f"{args.n_gpu} GPUs under DataParallel"
        raise NotImplementedError(UNTESTED.format(what=what, way_out=ONE_GPU))
    _refuse_parallelism(trainer)
    if engine == DistributedType.DEEPSPEED:
        refuse_deepspeed(trainer, config)
        _refuse_whole_steps(config)
    elif is_sharded(trainer):
        _refuse_sharded(trainer, config)
    elif args.world_size > 1:
        _refuse_replicated(args, config)


def refuse_lone_process(args: Any) -> None:
    """Raise where a launcher has started several processes that do not know of each other.

    Args:
        args: a `transformers.TrainingArguments`.

    Raises:
        NotImplementedError: with the ways out.
    """
    launched = os.environ.get("WORLD_SIZE", "1")
    ranked = "RANK" in os.environ or "LOCAL_RANK" in os.environ
    if ranked and launched.isdigit() and int(launched) > 1 and args.world_size == 1:
        raise NotImplementedError(ALONE.format(launched=launched))


def is_sharded(trainer: Any) -> bool:
    """Return whether the weights are, or will be, spread over processes."""
    return bool(trainer.is_fsdp_enabled) or any(is_dtensor(p) for p in _parameters(trainer))


def _parameters(trainer: Any) -> list[Any]:
    return list(trainer.model.parameters()) if trainer.model is not None else []


def _refuse_parallelism(trainer: Any) -> None:
    meshes = [p.device_mesh.mesh_dim_names or () for p in _parameters(trainer) if is_dtensor(p)]
    if any({"ep", "pp"} & set(names) for names in meshes):
        raise NotImplementedError(UNTESTED.format(what="expert or pipeline parallelism", way_out="Shard with FSDP2"))


def _refuse_sharded(trainer: Any, config: SAMConfig) -> None:
    if config.sam_scope == "device":
        raise NotImplementedError(ONE_PERTURBATION)
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None) if trainer.is_fsdp_enabled else None
    if plugin is None:
        return
    offload = plugin.cpu_offload  # a CPUOffload with a flag (FSDP1), or a policy (FSDP2)
    if getattr(offload, "offload_params", False) or type(offload).__name__ == "CPUOffloadPolicy":
        raise NotImplementedError(UNTESTED.format(what="FSDP with CPU offload", way_out="Train without offload"))
    shapeless = [("sam_variant", config.sam_variant == "sam"), ("sam_parameters", config.sam_parameters == "all")]
    for field, without in (*shapeless, ("rho", config.rho != AUTO)):
        if plugin.fsdp_version == 1 and not without:
            raise NotImplementedError(FLATTENED.format(what=f"{field}={getattr(config, field)!r}"))


def _refuse_whole_steps(config: SAMConfig) -> None:
    """Raise for steps of other passes than two whole ones."""
    parts = [("sam_parameters", "all"), ("sam_gate", "always"), ("ascent_fraction", 1)]
    other = [field for field, whole in parts if getattr(config, field) != whole]
    if VARIANTS[config.sam_variant].passes != "two" or variant_of(config).every > 1:
        other.insert(0, "sam_variant")
    if other:
        raise NotImplementedError(WHOLE_STEPS.format(what=f"{other[0]}={getattr(config, other[0])!r}"))


def _refuse_replicated(args: Any, config: SAMConfig) -> None:
    alone = config.sam_scope != "batch"
    static_graph = getattr(args, "ddp_static_graph", None)  # since transformers 5.6
    mixing = {
        f"sam_variant={config.sam_variant!r}": VARIANTS[config.sam_variant].combines,
        f"sam_sharpness_weight={config.sam_sharpness_weight}": config.sam_sharpness_weight != 1,
        "sam_renormalise=True": config.sam_renormalise,
    }
    if alone and any(mixing.values()):
        what = next(what for what, mixes in mixing.items() if mixes)
        raise NotImplementedError(MIXES.format(what=what, scope=config.sam_scope))
    partial = config.sam_parameters != "all" or config.ascent_fraction < 1
    if static_graph and partial:
        what = "an ascent pass over a part of the parameters or examples"
        raise NotImplementedError(STATIC_GRAPH.format(what=what, way_out="Leave sam_parameters and ascent_fraction"))
    if static_graph and alone:
        what = f"sam_scope={config.sam_scope!r}"
        raise NotImplementedError(STATIC_GRAPH.format(what=what, way_out="Use sam_scope='batch', or no static graph"))
    if static_graph and args.gradient_accumulation_steps > 1:
        what = "gradient accumulation"
        raise NotImplementedError(
            STATIC_GRAPH.format(what=what, way_out="Set gradient_accumulation_steps=1, or no static graph")
        )
