# SPDX-License-Identifier: Apache-2.0
"""Two passes in one step of DeepSpeed, which steps in `backward` and keeps gradients away from `.grad`.

Through public interfaces, for ZeRO stages 0, 1 and 2:
- accelerate's wrapper around the engine, an attribute of the accelerator, is exchanged inside a training step for one
  whose `backward` does not step; the step is taken when the weights are back;
- the reduced gradient is read with `safe_get_full_grad`, which costs a whole gradient of memory on every process;
- `safe_set_full_grad` writes zeros between the passes: engines that add to what is there end up with h alone.

When a pass raises, the weights are back and no step is taken, but gradients stay inside the engine: train on with a new
one, as `train()` makes it (also where auto_find_batch_size calls it again).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_sam.config.sam_config import SAMConfig
from hf_sam.engines.engine import Engine
from hf_sam.step.measurement import Measurement
from hf_sam.step.two_pass import two_pass_step
from hf_sam.variants import Variant
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


class _Deferred:
    """Stands in for accelerate's `DeepSpeedEngineWrapper`, whose `backward` steps."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        """Run backward; the gradients are complete after a window's last micro-batch."""
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss, **kwargs)


def engine_of(model: nn.Module) -> Any:
    """Return `model` if it is DeepSpeed's engine, else None."""
    # Looked up, not imported: without the import there can be no engine.
    deepspeed = sys.modules.get("deepspeed")
    return model if deepspeed is not None and isinstance(model, deepspeed.DeepSpeedEngine) else None


class DeepSpeed(Engine):
    """DeepSpeed with ZeRO stage 0, 1 or 2."""

    model: Any

    @classmethod
    def runs(cls, model: nn.Module, optimizer: Any) -> bool:
        """Return whether `model` is DeepSpeed's engine."""
        del optimizer
        return engine_of(model) is not None

    @contextmanager
    def deferred_step(self) -> Iterator[None]:
        """Keep DeepSpeed from stepping inside; step on leaving a window's last micro-batch, unless an error does."""
        wrapper = self.accelerator.deepspeed_engine_wrapped
        self.accelerator.deepspeed_engine_wrapped = _Deferred(self.model)
        try:
            yield
        finally:
            self.accelerator.deepspeed_engine_wrapped = wrapper
        if self.accelerator.sync_gradients:
            self.model.step()

    def parameters(self, optimizer: Any) -> list[Tensor]:
        """Return the distinct parameters of the model, and the optimizer's where it is the user's own.

        DeepSpeed's own optimizers hold flat copies of the model's parameters instead, and refuse any others.
        """
        copies = self.model.optimizer is not self.model.basic_optimizer
        return super().parameters(None if copies else optimizer)

    def two_pass_step(
        self, evaluate: Callable[[], object], params: list[Tensor], variant: Variant, **how: Any
    ) -> Measurement:
        """Take the step of `hf_sam.step.two_pass` with DeepSpeed's reduced gradients in `.grad`."""
        shown = _show(params)

        def evaluate_and_show() -> None:
            _write(shown, (torch.zeros_like(p) for p in shown))
            evaluate()
            shown[:] = _show(params)

        try:
            measurement = two_pass_step(evaluate_and_show, params, variant, **how)
            if variant.combines or how["mixing"].changes:
                _write(shown, [p.grad for p in shown])
        finally:
            for p in shown:
                p.grad = None
        return measurement


@torch.no_grad()
def _show(params: list[Tensor]) -> list[Tensor]:
    """Put the reduced gradients that DeepSpeed keeps to itself in `.grad`; return the parameters concerned.

    Reading adds up over the processes, which all come here at the same time.
    """
    read = sys.modules["deepspeed"].utils.safe_get_full_grad
    shown = []
    for p in params:
        grad = read(p) if p.grad is None else None
        if grad is not None:
            p.grad = grad.to(p.dtype)
            shown.append(p)
    return shown


@torch.no_grad()
def _write(params: list[Tensor], grads: Iterable[Tensor | None]) -> None:
    """Write gradients where DeepSpeed keeps them."""
    write = sys.modules["deepspeed"].utils.safe_set_full_grad
    for p, grad in zip(params, grads, strict=True):
        p.grad = None  # where there is one, that is what would be written
        write(p, grad)


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
