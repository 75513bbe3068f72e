# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C at each line of hf_sam that a step runs: the weights come back, and the next step is as if it never was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hf_sam.trainer.run_state import RunState
from hf_sam.vectors import vectors as numerics
from tests.compare import bits, same_bits
from tests.faults.injector import LINES, EveryLine, Fault, Injector
from tests.faults.places import Struck, watched_classes
from tests.faults.runs import Setting


def step(trainer: Struck, injector: Injector, count: int) -> tuple[BaseException | None, torch.Tensor | None]:
    """Run so many micro-batches, the last of which ends the window; return what came out of it."""
    trainer.injector = injector
    trainer._sam = RunState()  # an interrupt makes the next step a run's first: so is every one, with the same lines
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = count
    torch.manual_seed(0)
    data = trainer.train_dataset.data
    batches = [trainer.data_collator(data[4 * n : 4 * n + 4]) for n in range(count)]
    with watched_classes(injector), EveryLine(injector):
        try:
            for number, batch in enumerate(batches):
                trainer.accelerator.gradient_state._set_sync_gradients(number == count - 1)
                trainer.training_step(trainer.model, batch)
        except KeyboardInterrupt as error:
            return error, None
    return None, torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def interrupted(
    setting: Setting, folder: Path, *, phases: tuple[str, ...], function: str = "", count: int = 1
) -> Iterator[str]:
    """Interrupt a step at each line of these phases; yield what is not as it was."""
    trainer = setting.trainer(folder, Injector())
    trainer.create_optimizer()
    before = bits(trainer.model.parameters())
    _, gradient = step(trainer, Injector(), count)  # the first step does what no other does
    noting = Injector()
    step(trainer, noting, count)
    places = {o.place: o for o in noting.found if o.phase in phases and function in o.place}
    assert places
    for at in places.values():
        injector = Injector(Fault(at, "KeyboardInterrupt"))
        error, _ = step(trainer, injector, count)
        if error is None or error is not injector.fired:
            yield f"{at}: {error!r} came out of {injector.fired!r}"
        if not same_bits(bits(trainer.model.parameters()), before):
            yield f"{at}: the weights moved"
            return
        if trainer.in_descent_pass and function:
            yield f"{at}: in_descent_pass is still True"
        trainer._sam.in_descent_pass = False
    if setting.variant != "remembering" and not torch.equal(step(trainer, Injector(), count)[1], gradient):
        yield "the next step is another one"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "PIECE", 1500)


@pytest.mark.parametrize(
    "file", [pytest.param("perturbation.py ", marks=pytest.mark.slow), pytest.param("", marks=pytest.mark.everything)]
)
def test_an_interrupt_at_any_line_of_the_way_up_or_back_leaves_the_weights_where_they_were(
    file: str, tmp_path: Path
) -> None:
    assert not list(interrupted(Setting("bert", "sam", "batch"), tmp_path, phases=LINES[1:3], function=file))


@pytest.mark.everything
@pytest.mark.parametrize("setting", [Setting("resnet", "asam", "micro_batch"), Setting("lora", "remembering", "batch")])
def test_an_interrupt_at_any_line_of_a_step_leaves_the_weights_where_they_were(
    setting: Setting, tmp_path: Path
) -> None:
    assert not list(interrupted(setting, tmp_path, phases=LINES, count=2))


@pytest.mark.slow
def test_an_interrupt_beside_the_descent_pass_does_not_leave_its_flag(tmp_path: Path) -> None:
    setting = Setting("bert", "sam", "batch")
    assert not list(interrupted(setting, tmp_path, phases=LINES, function=" replay "))
