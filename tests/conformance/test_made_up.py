# SPDX-License-Identifier: Apache-2.0
"""Does a direction of one's own take one class and one registration?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sam import VARIANTS, Variant
from hf_sam.variants import Length
from hf_sam.vectors.vectors import Ascent, along, global_norm
from tests.conformance.checks import SETTINGS, config_of, problems
from tests.covering import covering


class SignSAM(Variant):
    """SAM in the geometry of the largest entry: epsilon = rho * sign(g) / ||sign(g)||."""

    title = "Sign-SAM"
    citation = "@misc{nobody, title = {Made up for a test}}"
    default_rho = 0.1

    def ascend(self, params: list[Tensor], grads: list[Tensor], rho: Length) -> Ascent:
        norm = global_norm(grads, params)  # zero or not finite where g is
        signs = [g.sign() for g in grads]
        return along(signs, rho, global_norm(signs, params) * norm / norm)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(VARIANTS, "sign", SignSAM)
    return "sign"


EACH_COMMIT = ("as it is", "cheap", "mixed")


@pytest.mark.parametrize("setting", covering(((s,) for s in SETTINGS), slow=[(s,) for s in EACH_COMMIT]), ids=str)
def test_a_made_up_direction_goes_with_every_setting(setting: str, registered: str, tmp_path: Path) -> None:
    assert config_of(registered, setting) is not None
    assert not list(problems(registered, setting, tmp_path))


class Forgetful(SignSAM):
    """Keeps something from step to step and saves none of it."""

    steps = 0

    def ascend(self, params: list[Tensor], grads: list[Tensor], rho: Length) -> Ascent:
        self.steps += 1
        return super().ascend(params, grads, rho * self.steps)


class Growing(SignSAM):
    """Moves also where the radius is zero."""

    def ascend(self, params: list[Tensor], grads: list[Tensor], rho: Length) -> Ascent:
        return super().ascend(params, grads, rho + 0.01)


class Idle(SignSAM):
    """Does not move at all."""

    def ascend(self, params: list[Tensor], grads: list[Tensor], rho: Length) -> Ascent:
        return along(grads, rho, torch.tensor(torch.inf))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "expected"),
    [(Forgetful, "after resuming"), (Growing, "at rho = 0"), (Idle, "it does nothing")],
    ids=lambda value: getattr(value, "__name__", "then"),
)
def test_the_suite_finds_what_is_wrong(
    broken: type[Any], expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(VARIANTS, "broken", broken)
    assert any(problem.startswith(expected) for problem in problems("broken", "as it is", tmp_path))
