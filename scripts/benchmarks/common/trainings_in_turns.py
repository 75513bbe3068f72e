# SPDX-License-Identifier: Apache-2.0
"""How are several trainings timed a step of each at a time, so that they meet the machine in the same moods?

Each runs its own `train()` in a thread that hands over after every optimizer step; one thread runs at any time. What is
counted is the thread's own CPU time, which neither the others nor other work on the machine lengthen.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback


class Step(NamedTuple):
    """CPU seconds of an optimizer step, and of its calls of the Trainer's `training_step`, where they are watched."""

    seconds: float
    in_passes: float = 0.0


class Turns(TrainerCallback):
    """Times the steps of one training and hands over after each."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.in_passes = 0.0
        self.may_go, self.has_ended = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        self._start = 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time of the step, and wait for the next turn."""
        self.steps.append(Step(time.thread_time() - self._start, self.in_passes))
        self._hand_over()

    def run(self, train: Callable[[], Any], threads: int) -> None:
        """Train, a step at each `take`; what is raised is raised there."""
        self.may_go.acquire()
        torch.set_num_threads(threads)
        self._begin()
        try:
            train()
        except BaseException as error:  # noqa: BLE001 (`take` raises it)
            self.error = error
        finally:
            self.has_ended.release()

    def take(self) -> None:
        """Let the training take a step; return when it has."""
        self.may_go.release()
        self.has_ended.acquire()
        if self.error is not None:
            raise self.error

    def _hand_over(self) -> None:
        self.has_ended.release()
        self.may_go.acquire()
        self._begin()

    def _begin(self) -> None:
        self.in_passes, self._start = 0.0, time.thread_time()


class TimedTrainer(Trainer):
    """The plain Trainer, which says how long its passes take."""

    turns: Turns

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run forward and backward."""
        start = time.thread_time()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.turns.in_passes += time.thread_time() - start
        return loss


def in_turns(
    trainings: Mapping[str, Callable[[Turns], Trainer]], rounds: int, *, warm_up: int = 2, threads: int = 1
) -> dict[str, list[Step]]:
    """Take a step of each training in turn, back and forth.

    Args:
        trainings: by name, what makes a trainer of `warm_up + rounds` steps that has these turns among its callbacks.
        rounds: steps of each that are timed.
        warm_up: steps of each before these.
        threads: of torch.

    Returns:
        The timed steps of each.
    """
    turns = {name: Turns() for name in trainings}
    running = []
    for name, make in trainings.items():
        trainer = make(turns[name])
        running.append(threading.Thread(target=turns[name].run, args=(trainer.train, threads), daemon=True))
        running[-1].start()
        for _ in range(warm_up):
            turns[name].take()
    gc.collect()
    gc.freeze()  # or collections would look through all these trainings
    for turn in range(rounds):
        for name in list(turns)[:: -1 if turn % 2 else 1]:
            turns[name].take()
    for each, thread in zip(turns.values(), running, strict=True):
        each.may_go.release()  # to its end
        thread.join()
    gc.unfreeze()
    return {name: each.steps[warm_up:] for name, each in turns.items()}
