# SPDX-License-Identifier: Apache-2.0
"""Which settings of DeepSpeed would two passes get wrong, and what should their users do instead?"""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_sam.config.sam_config import SAMConfig
from hf_sam.engines.deepspeed import engine_of
from hf_sam.vectors.shards import is_dtensor

WAY_OUT = "or shard with FSDP2: accelerate launch --config_file scripts/accelerate/fsdp2.yaml."
PARTITIONED = (
    "DeepSpeed's ZeRO stage 3 spreads every weight over the processes, which is not supported. "
    f"Use ZeRO stage 1 or 2, {WAY_OUT}"
)
WRONG = f"DeepSpeed with {{what}} would get two passes of a SAM step wrong, or is untested. Train without, {WAY_OUT}"
ADDED_IN_FP32 = (
    "DeepSpeed cannot write gradients in ZeRO stage 1 with bf16 weights and `data_types.grad_accum_dtype` fp32, so "
    "those of the first pass would stay in the sum. Use ZeRO stage 2."
)
ENGINE_GIVEN = (
    "The model is a DeepSpeedEngine. Pass the model itself, and its settings as TrainingArguments(deepspeed=...)."
)
ONE_PERTURBATION = "DeepSpeed reduces gradients over all processes at once. Use sam_scope='batch', or DDP."

SWITCHES = (
    "zero_optimization.offload_optimizer.device",
    "zero_optimization.offload_param.device",
    "zero_optimization.cpu_offload",
    "zero_optimization.round_robin_gradients",  # `safe_get_full_grad` fails on some processes, the others wait for ever
    "zero_optimization.zenflow",
    "compile.deepcompile",
    "expert_parallel.enabled",
)
SIZES = ("tensor_parallel.autotp_size", "tensor_parallel.tp.tp_size")
LOCAL_GRADIENTS = ("onebitadam", "onebitlamb", "zerooneadam")
"""Optimizers that exchange gradients themselves, in `step()`, so that every process would climb its own way."""


def refuse_settings(settings: Any) -> None:
    """Raise for settings of DeepSpeed under which two passes are wrong.

    Args:
        settings: accelerate's HfDeepSpeedConfig.

    Raises:
        NotImplementedError: with the reason and the alternative.
    """
    stage = settings.get_value("zero_optimization.stage")
    if stage == 3:
        raise NotImplementedError(PARTITIONED)
    unsuited = [name for name in SWITCHES if _is_on(settings.get_value(name))]
    unsuited += [name for name in SIZES if (settings.get_value(name) or 1) != 1]
    if str(settings.get_value("optimizer.type")).lower() in LOCAL_GRADIENTS:
        unsuited.append("optimizer.type")
    if settings.get_value("managed_gradient_accumulation") is False:
        unsuited.append("managed_gradient_accumulation")
    if unsuited:
        raise NotImplementedError(WRONG.format(what=f"`{unsuited[0]}: {settings.get_value(unsuited[0])}`"))
    in_fp32 = settings.get_value("data_types.grad_accum_dtype") in ("fp32", "float32", "torch.float32", "float")
    if stage == 1 and in_fp32 and settings.get_value("bf16.enabled") is True:
        raise NotImplementedError(ADDED_IN_FP32)


def _is_on(value: Any) -> bool:
    return bool(value) and value not in ("auto", "none")


def refuse_deepspeed(trainer: Any, config: SAMConfig) -> None:
    """Raise for what DeepSpeed, as the trainer has set it up, cannot do in two passes.

    Args:
        trainer: a constructed `transformers.Trainer` under DeepSpeed.
        config: SAM's settings.

    Raises:
        NotImplementedError: with the reason and the alternative.
    """
    refuse_settings(trainer.accelerator.state.deepspeed_plugin.hf_ds_config)
    if config.sam_scope != "batch":
        raise NotImplementedError(ONE_PERTURBATION)
    if trainer.model is not None and any(is_dtensor(p) for p in trainer.model.parameters()):
        raise NotImplementedError(WRONG.format(what="weights that are sharded already"))


def refuse_deepspeed_model(model: nn.Module) -> None:
    """Raise for a model that DeepSpeed has already changed.

    Raises:
        NotImplementedError: with the reason and the alternative.
    """
    if engine_of(model) is not None:
        raise NotImplementedError(ENGINE_GIVEN)
    for p in model.parameters():
        if hasattr(p, "ds_id"):  # by HfDeepSpeedConfig or deepspeed.zero.Init, whatever the arguments say
            raise NotImplementedError(PARTITIONED)
        if getattr(p, "allreduce", True) is False:  # so DeepSpeed marks experts, which only some processes hold
            raise NotImplementedError(WRONG.format(what="a mixture of experts of its own"))
