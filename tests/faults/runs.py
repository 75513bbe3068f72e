# SPDX-License-Identifier: Apache-2.0
"""What must hold after a fault? Strike a run, look at what is left, go on from the last complete checkpoint."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors import SafetensorError
from transformers import Trainer

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.cli.common.checkpoints import checkpoints, find_damage
from hf_sam.trainer.training_step import TrainingStep
from tests.compare import bits, same_bits
from tests.faults.files import contents
from tests.faults.injector import LOADING, POISONED, TOO_LARGE, EveryLine, Fault, Injector, Opportunity
from tests.faults.places import EveryEvent, Examples, Struck, watched_classes
from tests.models import build
from tests.promises.runs import CLOCK, differences, fingerprint, trainer_for

STEPS = 4  # in two epochs of three micro-batches: windows of two and of one
EXAMPLES = 12


@dataclass(frozen=True)
class Setting:
    """What is trained, and how."""

    family: str
    variant: str
    scope: str
    auto_find_batch_size: bool = False

    def trainer(self, folder: Path, injector: Injector, base: type[Struck] = Struck, **attributes: Any) -> Any:
        _, data = build(self.family)
        return trainer_for(
            self.family,
            folder,
            sam=SAMConfig(rho=0.2, sam_variant=self.variant, sam_scope=self.scope),
            classes=(SAMTrainer, type("Struck", (base,), {"injector": injector, **attributes})),
            wrap_data=lambda whole: Examples(whole[:EXAMPLES], injector),
            trainer_kwargs={"eval_dataset": data[EXAMPLES : EXAMPLES + 4], "callbacks": [EveryEvent(injector)]},
            gradient_accumulation_steps=2,
            max_steps=STEPS,
            save_strategy="steps",
            save_steps=1,
            eval_strategy="steps",
            eval_steps=2,
            auto_find_batch_size=self.auto_find_batch_size,
        )


class Watching(Struck):
    """Notes the weights after every optimizer step."""

    weights: list[list[torch.Tensor]]

    def _stepped(self) -> None:
        self.weights.append(bits(self.model.parameters()))
        super()._stepped()


class Plain(Struck):
    """Leaves the perturbation out where a bad gradient should have made it do so: the way promise 8 puts it."""

    at: Opportunity

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        here = (self.state.global_step, self.injector.micro_batch)
        alone = self.sam_config.sam_scope == "micro_batch"
        is_due = here == (self.at.step, self.at.micro_batch) if alone else here[0] == self.at.step
        with mock.patch.object(TrainingStep, "_descend", nowhere) if is_due else nullcontext():
            return super().training_step(*args, **kwargs)


DESCEND = TrainingStep._descend


def nowhere(step: TrainingStep, *args: Any) -> None:
    """Descend with a radius of zero."""
    plan = step.window.plan
    step.window.plan = plan._replace(rho=0.0)
    DESCEND(step, *args)
    step.window.plan = plan


def result(trainer: Trainer) -> dict[str, Any]:
    """Return everything in which two finished runs could differ; of the logs not the clock, and not the summary."""
    entries = [e for e in trainer.state.log_history if "train_loss" not in e]
    logs = [{k: e[k] for k in sorted(e) if not any(c in k for c in CLOCK)} for e in entries]  # files sort them
    return {**fingerprint(trainer), "logs": logs}


class Reference:
    """The run without a fault, once per setting: its weights after each step, its end, and every opportunity."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting, self.folder = setting, folder
        injector = Injector()
        trainer = setting.trainer(folder, injector, Watching, weights=[])
        start = bits(trainer.model.parameters())
        with watched_classes(injector), EveryLine(injector):
            trainer.train()
        self.weights = [start, *trainer.weights]
        self.result = result(trainer)
        self.opportunities = [o for o in injector.found if o.phase not in LOADING]
        self.opportunities += self._of_loading()
        self._without: dict[tuple[int, int], dict[str, Any]] = {}

    def _of_loading(self) -> list[Opportunity]:
        injector = Injector()
        again = self.setting.trainer(self.folder / "again", injector)
        with watched_classes(injector), EveryLine(injector):
            again.train(resume_from_checkpoint=str(self.folder / "checkpoint-2"))
        assert not differences(self.result, result(again))
        return [o for o in injector.found if o.phase in LOADING]

    def without_perturbation(self, at: Opportunity) -> dict[str, Any]:
        """Return the result of the run whose perturbation at this moment is left out."""
        key = (at.step, at.micro_batch if self.setting.scope == "micro_batch" else 0)
        if key not in self._without:
            injector = Injector()
            trainer = self.setting.trainer(self.folder / "without", injector, Plain, at=at)
            with watched_classes(injector):
                trainer.train()
            self._without[key] = result(trainer)
        return self._without[key]


def problems(reference: Reference, fault: Fault, folder: Path, seed: int) -> Iterator[str]:
    """Let the fault strike a run, and yield what is not as it should be; nothing if all is well."""
    injector = Injector(fault)
    if fault.at.phase in LOADING:
        shutil.copytree(reference.folder / "checkpoint-2", folder / "checkpoint-2")
    start = last_complete(folder)
    trainer = reference.setting.trainer(folder, injector)
    if start is not None:
        trainer.completed, trainer.saved[Path(start)] = 2, contents(Path(start))
    raised = None
    with watched_classes(injector), EveryLine(injector):
        try:
            trainer.train(resume_from_checkpoint=start)
        except BaseException as error:  # noqa: BLE001 (Ctrl-C is among the faults)
            raised = error
    if injector.fired is None:
        yield f"the fault never struck (raised: {raised!r})"
    elif fault.at.phase in POISONED:
        yield from _after_poison(reference, fault, trainer, raised)
    elif raised is None and reference.setting.auto_find_batch_size and fault.kind == "out of memory":
        yield from _after_smaller_batches(reference, trainer)
        return
    else:
        yield from _after_error(reference, fault, trainer, raised, injector)
    if fault.at.phase in POISONED and fault.at.phase.startswith("clean"):
        return
    yield from _goes_on(reference, fault, trainer, folder, seed)


def last_complete(folder: Path, before: int = STEPS) -> str | None:
    found = [p for p in checkpoints(folder) if find_damage(p) is None and int(p.name.split("-")[1]) <= before]
    return str(found[0]) if found else None


def _after_error(
    reference: Reference, fault: Fault, trainer: Struck, raised: BaseException | None, injector: Injector
) -> Iterator[str]:
    if fault.kind == TOO_LARGE:
        if not isinstance(raised, OSError | RuntimeError | SafetensorError):
            yield f"no word of the disk that is full, but {raised!r}"
    elif injector.fired not in (raised, getattr(raised, "__cause__", None)):  # a read error is told with its file
        yield f"{injector.fired!r} was raised, {raised!r} came out"
    loading = fault.at.phase in LOADING
    if not loading and not same_bits(bits(trainer.model.parameters()), reference.weights[trainer.completed]):
        yield "the weights are not those after the last optimizer step"
    yield from (f"{saved} changed" for saved, before in trainer.saved.items() if contents(saved) != before)


def _after_poison(reference: Reference, fault: Fault, trainer: Struck, raised: BaseException | None) -> Iterator[str]:
    if raised is not None:
        yield f"{raised!r} came out"
        return
    completed, weights = trainer.at_step or (0, [])
    if not same_bits(weights, reference.weights[completed]):
        yield "the weights before the optimizer step are not those after the one before"
    if fault.at.phase.startswith("descent"):
        return  # what the optimizer gets is not finite, as it would be without SAM
    if not all(p.isfinite().all() for p in trainer.model.parameters()):
        yield "weights that are not finite"
    if not any(entry.get("sam/skipped") for entry in trainer.state.log_history):
        yield "the skipped perturbation is not counted"
    if reference.setting.variant == "remembering":
        return  # it remembers the bad gradient
    expected, found = reference.without_perturbation(fault.at), result(trainer)
    yield from (f"{name} is not as in a plain step" for name in differences(expected, found) if name != "logs")


def _after_smaller_batches(reference: Reference, trainer: Struck) -> Iterator[str]:
    if trainer.state.global_step != STEPS or trainer._train_batch_size >= trainer.args.per_device_train_batch_size:
        yield "training did not go on with smaller batches"
    assert trainer.at_start is not None
    completed, weights = trainer.at_start
    if not same_bits(weights, reference.weights[completed]):
        yield "training starts again from weights that are not those after the last optimizer step"


def _goes_on(reference: Reference, fault: Fault, trainer: Struck, folder: Path, seed: int) -> Iterator[str]:
    """Resume from the last complete checkpoint, in the same trainer or a new one, and compare the end."""
    # A poisoned descent pass is followed by checkpoints of weights that are not finite.
    checkpoint = last_complete(folder, fault.at.step if fault.at.phase in POISONED else STEPS)
    before = contents(Path(checkpoint)) if checkpoint else {}
    if checkpoint is None or random.Random(seed).random() < 0.5:
        trainer = reference.setting.trainer(folder, Injector())
    trainer.train(resume_from_checkpoint=checkpoint)
    yield from (f"after resuming, {name} differs" for name in differences(reference.result, result(trainer)))
    if checkpoint and contents(Path(checkpoint)) != before:
        yield f"{checkpoint} changed"
