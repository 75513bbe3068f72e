# SPDX-License-Identifier: Apache-2.0
"""Faults at every phase of a step: the weights are unperturbed, the error is told, the resume is exact."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from hf_sam.vectors import vectors as numerics
from tests.faults.injector import ERRORS, PHASES, TOO_LARGE, VALUES, draw
from tests.faults.runs import Reference, Setting, problems

FAST = [
    Setting("bert", "remembering", "batch"),
    Setting("resnet", "asam", "micro_batch"),
    Setting("lora", "sam", "batch", auto_find_batch_size=True),
]
ALL = [
    Setting(family, variant, scope, auto_find_batch_size=number % 3 == 0)
    for number, (family, variant, scope) in enumerate(
        product(("bert", "resnet", "lora"), ("sam", "asam", "remembering"), ("batch", "micro_batch"))
    )
]


Inject = Callable[[list[Setting], int], Counter[str]]


@pytest.fixture
def inject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]) -> Inject:
    """Return a function that injects one fault per seed, in turn into each setting, and counts them."""
    monkeypatch.setattr(numerics, "PIECE", 500)  # so that a tiny model is climbed in several pieces

    def run(settings: list[Setting], seeds: int) -> Counter[str]:
        counts: Counter[str] = Counter()
        wrong: list[str] = []
        references: dict[Setting, Reference] = {}
        for seed in range(seeds):
            setting = settings[seed % len(settings)]
            if setting not in references:
                references[setting] = Reference(setting, tmp_path / f"reference-{len(references)}")
                gc.freeze()  # its thousands of opportunities too
            fault = draw(seed, references[setting].opportunities)
            counts.update([fault.at.phase, fault.kind])
            found = problems(references[setting], fault, tmp_path / f"run-{seed}", seed)
            wrong += [f"seed {seed}, {setting}, {fault}: {problem}" for problem in found]
        record_property("injected faults", {"faults": seeds, **counts})
        assert not wrong, "\n".join(wrong)
        return counts

    return run


@pytest.mark.everything
def test_a_few_faults_leave_unperturbed_weights_and_training_goes_on_exactly(inject: Inject) -> None:
    assert inject(FAST, 3)


@pytest.mark.slow
def test_a_fault_in_each_phase_leaves_unperturbed_weights_and_training_goes_on_exactly(inject: Inject) -> None:
    counts = inject(FAST, len(PHASES))
    assert not [phase for phase in PHASES if not counts[phase]]


@pytest.mark.everything
@pytest.mark.slow
def test_hundreds_of_faults_leave_unperturbed_weights_and_training_goes_on_exactly(inject: Inject) -> None:
    counts = inject(ALL, 200)
    assert not [name for name in (*PHASES, *ERRORS, *VALUES, TOO_LARGE) if not counts[name]]
