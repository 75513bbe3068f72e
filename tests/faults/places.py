# SPDX-License-Identifier: Apache-2.0
"""Where can training be struck? A trainer that gives an injector its chance at every phase of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from transformers import TrainerCallback

from hf_sam import ASAM, SAM, SAMTrainer
from tests.compare import bits
from tests.faults.files import contents, watched_files
from tests.faults.injector import LOADING, Injector
from tests.promises.resumable import Remembering


class Struck(SAMTrainer):
    """Every phase of a step is an opportunity for `injector`, which a subclass sets."""

    carried = ("injector", "completed", "at_start", "at_step", "saved", "_descents")
    injector: Injector
    completed = 0  # optimizer steps
    at_start: tuple[int, list[torch.Tensor]] | None = None  # completed steps and weights when training starts (again)
    at_step: tuple[int, list[torch.Tensor]] | None = None  # the same before the first optimizer step after the fault

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.saved: dict[Path, dict[str, str]] = {}
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        self.injector.stage = "line elsewhere" if resume_from_checkpoint is None else "line of loading"
        return super().train(*args, resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_train_dataloader(self) -> Any:
        self.at_start = (self.completed, bits(self.model.parameters()))
        return super().get_train_dataloader()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.injector.step, self.injector.stage = self.state.global_step, "line of a pass"
        self._descents = 0
        try:
            return super().training_step(*args, **kwargs)
        finally:
            self.injector.stage = "line elsewhere"
            self.injector.micro_batch = 0 if self.accelerator.sync_gradients else self.injector.micro_batch + 1

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not model.training:
            self.injector.strike("evaluation")
            return super().compute_loss(model, *args, **kwargs)
        self.injector.stage = "line of a pass"
        name = "descent" if self.in_descent_pass else "clean"
        with watched_modules(model, self.injector, name):
            self.injector.strike(f"{name} forward", "before")
            loss = super().compute_loss(model, *args, **kwargs)
        return self.injector.poison(f"{name} loss", loss)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        backward = self.accelerator.backward

        def run(*args: Any, **kwargs: Any) -> None:
            name = "descent" if self.in_descent_pass else "clean"
            with watched_gradients(self.model, self.injector, f"{name} gradient"):
                backward(*args, **kwargs)
            self._descents += self.in_descent_pass
            window = 1 if self.sam_config.sam_scope == "micro_batch" else self.injector.micro_batch + 1
            if self._descents == window:
                self.injector.stage = "line of the way back"

        self.accelerator.backward = run

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        if self.optimizer is None:
            optimizer = super().create_optimizer(*args, **kwargs)
            optimizer.register_step_pre_hook(lambda *_: self._steps())
            optimizer.register_step_post_hook(lambda *_: self._stepped())
        return super().create_optimizer(*args, **kwargs)

    def _steps(self) -> None:
        if self.injector.fired is not None and self.at_step is None:
            self.at_step = (self.completed, bits(self.model.parameters()))
        self.injector.strike("optimizer step", "before")

    def _stepped(self) -> None:
        self.completed += 1
        self.injector.strike("optimizer step", "after")

    def log(self, *args: Any, **kwargs: Any) -> None:
        self.injector.strike("log", "before")
        super().log(*args, **kwargs)
        self.injector.strike("log", "after")

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with watched_files(self.injector):
            super()._save_checkpoint(*args, **kwargs)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.saved[folder] = contents(folder)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._load("model", super()._load_from_checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self._load("optimizer", super()._load_optimizer_and_scheduler, checkpoint)
        self.injector.stage = "line elsewhere"

    def _load_rng_state(self, checkpoint: str | None) -> None:
        self._load("random state", super()._load_rng_state, checkpoint)

    def _load(self, name: str, load: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        self.injector.strike("loading", f"before the {name}")
        load(*args, **kwargs)
        self.injector.strike("loading", f"after the {name}")


class EveryEvent(TrainerCallback):
    """An opportunity at every event."""

    def __init__(self, injector: Injector) -> None:
        self.injector = injector


for _event in [name for name in dir(TrainerCallback) if name.startswith("on_") and name != "on_init_end"]:

    def _handler(self: EveryEvent, *args: Any, _event: str = _event, **kwargs: Any) -> None:
        self.injector.strike("callback", _event)

    setattr(EveryEvent, _event, _handler)


class Examples(torch.utils.data.Dataset):
    """A data set each of whose reads is an opportunity."""

    def __init__(self, data: list[Any], injector: Injector) -> None:
        self.data, self.injector = data, injector

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.injector.strike("data loading")
        return self.data[index]


# ----------------------------------------------------------------------------------------------------------------------
# Inside a forward and a backward pass
# ----------------------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def watched_modules(model: nn.Module, injector: Injector, name: str) -> Iterator[None]:
    """Make each layer's forward and backward an opportunity."""
    if not injector.watches(f"{name} forward", f"{name} backward"):
        yield
        return

    def hook(module: nn.Module, inputs: Any, output: Any, *, place: str) -> None:
        injector.strike(f"{name} forward", place)
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(lambda _: injector.strike(f"{name} backward", place))

    leaves = [(place, module) for place, module in model.named_modules() if not list(module.children())]
    handles = [
        module.register_forward_hook(lambda *a, place=place: hook(*a, place=place))  # type: ignore[misc]
        for place, module in leaves
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def watched_gradients(model: nn.Module, injector: Injector, phase: str) -> Iterator[None]:
    """Make each gradient that arrives at a parameter an opportunity to be poisoned."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and injector.watches(phase)]
    handles = [p.register_hook(lambda g, n=n: injector.poison(phase, g, n)) for n, p in named]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ----------------------------------------------------------------------------------------------------------------------
# What belongs to classes
# ----------------------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def watched_classes(injector: Injector) -> Iterator[None]:
    """Make `ascend` of every direction and the scheduler's step an opportunity, and reading a file on resume."""

    def around(function: Callable[..., Any], phase: str, stage: str | None = None) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            injector.strike(phase, f"before {function.__qualname__}")
            result = function(*args, **kwargs)
            injector.strike(phase, f"after {function.__qualname__}")
            injector.stage = stage or injector.stage
            return result

        return run

    scheduler = torch.optim.lr_scheduler.LRScheduler
    with contextlib.ExitStack() as stack:
        for variant in (SAM, ASAM, Remembering):
            ascend = around(variant.ascend, "ascend", "line of the climb")
            stack.enter_context(mock.patch.object(variant, "ascend", ascend))
        stack.enter_context(mock.patch.object(scheduler, "step", around(scheduler.step, "scheduler")))
        stack.enter_context(mock.patch.object(torch, "load", around(torch.load, LOADING[0])))
        yield
