# SPDX-License-Identifier: Apache-2.0
"""When does a fault strike, and which one? A plan drawn from a seed, out of every opportunity that a run offers."""

from __future__ import annotations

import errno
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import hf_sam

PACKAGE = str(Path(hf_sam.__file__).parent)

ERRORS: dict[str, Callable[[], BaseException]] = {
    "out of memory": lambda: torch.OutOfMemoryError("CUDA out of memory. (injected)"),
    "RuntimeError": lambda: RuntimeError("injected"),
    "KeyboardInterrupt": lambda: KeyboardInterrupt("injected"),
    "SystemExit": lambda: SystemExit("injected"),
    "MemoryError": lambda: MemoryError("injected"),
    "disk full": lambda: OSError(errno.ENOSPC, "No space left on device (injected)"),
}
VALUES = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
TOO_LARGE = "file size limit"  # no exception of ours: the system refuses to write more

RAISING = (
    "data loading",
    "clean forward",
    "clean backward",
    "ascend",
    "descent forward",
    "descent backward",
    "optimizer step",
    "scheduler",
    "callback",
    "log",
    "evaluation",
    "saving",
    "loading",
)
LINES = ("line of a pass", "line of the climb", "line of the way back", "line elsewhere", "line of loading")
POISONED = ("clean loss", "clean gradient", "descent loss", "descent gradient")
DISK = "writing a file"
PHASES = (*RAISING, *LINES, *POISONED, DISK)
LOADING = ("loading", "line of loading")  # of a run that resumes; every other phase is of one that starts


@dataclass(frozen=True)
class Opportunity:
    """A moment at which a fault could strike: the `number`-th of its phase at its place."""

    phase: str
    number: int
    step: int
    micro_batch: int
    place: str


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and when."""

    at: Opportunity
    kind: str


def kinds_of(phase: str) -> tuple[str, ...]:
    if phase == DISK:
        return (TOO_LARGE,)
    return tuple(VALUES if phase in POISONED else ERRORS)


def phase_of(seed: int) -> str:
    """Return the phase of a seed: in every round of `len(PHASES)` seeds each phase has its turn."""
    turn, place = divmod(seed, len(PHASES))
    return random.Random(f"round {turn}").sample(PHASES, len(PHASES))[place]


def draw(seed: int, opportunities: Sequence[Opportunity]) -> Fault:
    """Return the fault of a seed. Each place of the phase is as likely as any other, however often a run is there."""
    generator, phase = random.Random(seed), phase_of(seed)
    candidates = [o for o in opportunities if o.phase == phase]
    place = generator.choice(sorted({o.place for o in candidates}))
    at = generator.choice([o for o in candidates if o.place == place])
    return Fault(at, generator.choice(kinds_of(phase)))


@dataclass
class Injector:
    """Strikes once, at the fault's opportunity; without a fault it notes every opportunity.

    Attributes:
        stage: what a line of hf_sam that runs now belongs to.
        fired: the exception that was raised, or the value that was put in.
    """

    fault: Fault | None = None
    step: int = 0
    micro_batch: int = 0
    stage: str = "line elsewhere"
    fired: Any = None
    found: list[Opportunity] = field(default_factory=list)
    _counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def is_due(self, phase: str, place: str = "") -> bool:
        """Count this opportunity; True if it is the one."""
        number = self._counts[phase, place]
        self._counts[phase, place] += 1
        if self.fault is None:
            self.found.append(Opportunity(phase, number, self.step, self.micro_batch, place))
            return False
        at = self.fault.at
        return self.fired is None and (at.phase, at.place, at.number) == (phase, place, number)

    def strike(self, phase: str, place: str = "") -> None:
        """Raise if this is the opportunity."""
        if self.is_due(phase, place):
            self.raise_now()

    def raise_now(self) -> None:
        assert self.fault is not None
        self.fired = ERRORS[self.fault.kind]()
        raise self.fired

    def poison(self, phase: str, tensor: torch.Tensor, place: str = "") -> torch.Tensor:
        """Return the tensor, with a number that is none in it if this is the opportunity."""
        if not self.is_due(phase, place):
            return tensor
        assert self.fault is not None
        self.fired = VALUES[self.fault.kind]
        if tensor.dim() == 0:
            return tensor * self.fired  # a loss: its gradient goes wrong too
        poisoned = tensor.clone()
        poisoned.view(-1)[-1] = self.fired
        return poisoned

    def watches(self, *phases: str) -> bool:
        return self.fault is None or (self.fired is None and self.fault.at.phase in phases)


class EveryLine:
    """While it is open, each line of hf_sam is an opportunity, as it is for Ctrl-C."""

    def __init__(self, injector: Injector) -> None:
        self._injector = injector

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        if self._injector.watches(*LINES):
            sys.settrace(self._call)

    def __exit__(self, *args: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            file = Path(frame.f_code.co_filename).name
            self._injector.strike(self._injector.stage, f"{file} {frame.f_code.co_name} {frame.f_lineno}")
        return self._line
