# SPDX-License-Identifier: Apache-2.0
"""How do two passes fit into one step of DeepSpeed, which steps in `backward` and keeps gradients away from `.grad`?

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

from hf_sam.step.measurement import Measurement
from hf_sam.step.two_pass import two_pass_step
from hf_sam.variants import Variant
from hf_sam.vectors.shards import is_dtensor


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
    # Looked up, not imported: who has not imported it cannot have made one.
    deepspeed = sys.modules.get("deepspeed")
    return model if deepspeed is not None and isinstance(model, deepspeed.DeepSpeedEngine) else None


@contextmanager
def step_deferred(accelerator: Any, model: nn.Module) -> Iterator[None]:
    """Keep DeepSpeed from stepping inside; step on leaving a window's last micro-batch, unless something was raised."""
    engine = engine_of(model)
    if engine is None:
        yield
        return
    wrapper = accelerator.deepspeed_engine_wrapped
    accelerator.deepspeed_engine_wrapped = _Deferred(engine)
    try:
        yield
    finally:
        accelerator.deepspeed_engine_wrapped = wrapper
    if accelerator.sync_gradients:
        engine.step()


def parameters_of(model: nn.Module, optimizer: Any) -> list[Any]:
    """Return the parameters of the model and those of the optimizer, some of which the model may not know.

    DeepSpeed's own optimizers hold flat copies of the model's parameters instead, and refuse any others.
    """
    engine = engine_of(model)
    copies = engine is not None and engine.optimizer is not engine.basic_optimizer
    groups = [] if copies or optimizer is None else optimizer.param_groups
    trained = [p for group in groups for p in group["params"]]
    if any(is_dtensor(p) for p in trained):
        # After an evaluation FSDP2's model has others, those gathered: the optimizer's order stays the same.
        return [*trained, *model.parameters()]
    return [*model.parameters(), *trained]


def descend_in(
    model: nn.Module, evaluate: Callable[[], object], params: list[Tensor], direction: Variant, **how: Any
) -> Measurement:
    """Take the step of `hf_sam.step.two_pass`; under DeepSpeed, show it the reduced gradients in `.grad`."""
    if engine_of(model) is None:
        return two_pass_step(evaluate, params, direction, **how)
    shown = _show(params)

    def evaluate_and_show() -> None:
        _write(shown, (torch.zeros_like(p) for p in shown))
        evaluate()
        shown[:] = _show(params)

    try:
        report = two_pass_step(evaluate_and_show, params, direction, **how)
        if direction.combines or how["mixing"].changes:
            _write(shown, [p.grad for p in shown])
    finally:
        for p in shown:
            p.grad = None
    return report


@torch.no_grad()
def _show(params: list[Tensor]) -> list[Tensor]:
    """Put the reduced gradients in `.grad` where DeepSpeed keeps them elsewhere; return the parameters where it does.

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
