# SPDX-License-Identifier: Apache-2.0
"""Time a run over all of its parts, and say where a resumed one goes on."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class TrainingClock(TrainerCallback, ExportableState):
    """Seconds of training, kept in the checkpoints, so that a run that goes on knows those of the parts before."""

    def __init__(self) -> None:
        self.wall_before = self.cpu_before = 0.0
        self._wall: float | None = None
        self._cpu = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take over what the checkpoint knows, if training goes on from one."""
        kept = state.stateful_callbacks.setdefault(type(self).__name__, self.state())["attributes"]
        self.wall_before, self.cpu_before = float(kept["wall"]), float(kept["cpu"])
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def state(self) -> dict[str, Any]:
        """Return the seconds until now, for trainer_state.json."""
        wall, cpu = self.wall_before, self.cpu_before
        if self._wall is not None:
            wall, cpu = wall + time.perf_counter() - self._wall, cpu + time.process_time() - self._cpu
        return {"args": {}, "attributes": {"wall": round(wall, 3), "cpu": round(cpu, 3)}}


def seconds_before(trainer: Any) -> dict[str, float]:
    """Return the seconds of the parts before this one, nothing for a run in one part."""
    clock = next((each for each in trainer.callback_handler.callbacks if isinstance(each, TrainingClock)), None)
    if clock is None or not clock.wall_before:
        return {}
    return {"train_runtime_before": clock.wall_before, "train_cpu_time_before": clock.cpu_before}


def where_it_goes_on(checkpoint: Path) -> str:
    """Return in words at which step training goes on from a checkpoint, and how long it took to get there."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    clock = state.get("stateful_callbacks", {}).get(TrainingClock.__name__)
    took = f", after {clock['attributes']['wall']:.1f} s of training" if clock else ""
    return f"at step {state['global_step']:,}, from {checkpoint}{took}"
