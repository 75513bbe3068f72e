# SPDX-License-Identifier: Apache-2.0
"""Does every direction go with every setting it claims to, resume in the same bits, and refuse the rest?"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest

from hf_sam import VARIANTS
from tests.conformance.checks import QUESTIONS, SETTINGS, Chosen, config_of, problems
from tests.conformance.pairwise import Row, covering_rows
from tests.covering import covering

NAMES = [name for name, variant in VARIANTS.items() if variant.__module__.startswith("hf_sam.")]
FAMILY = dict.fromkeys(("nbar", "obar", "flat_lora", "bi_lora"), "lora")
PAIRS = [(name, setting) for name in NAMES for setting in SETTINGS]
TOGETHER = ("cheap", "controlled part", "mixed")  # several settings at once: with SAM on each commit

words = functools.partial(re.sub, r"\W+", "_")


def chosen(row: Row) -> Chosen:
    return tuple(answer for question, answer in row.items() if question != "variant" and answer != "as it is")


@functools.cache
def goes(name: str, settings: Chosen) -> bool:
    return config_of(name, settings) is not None


def possible(row: Row) -> bool:
    """Leave out what the library refuses, and the runs in which rho="auto" has nothing to perturb with."""
    measured_late = row["radius"] == "auto" and row["gate"] != "as it is"
    return not measured_late and goes(row["variant"], chosen(row))


def rows() -> list[Any]:
    """Return each direction with combinations in which every two settings that go together meet."""
    found = covering_rows({"variant": NAMES, **QUESTIONS}, possible)
    return [
        pytest.param(row["variant"], chosen(row), id=words(" ".join([row["variant"], *chosen(row)]))) for row in found
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "setting"),
    covering(
        PAIRS,
        fast=[(name, "as it is") for name in ("momentum", "flat_lora")],
        slow=[*((name, "as it is") for name in NAMES), *(("sam", setting) for setting in TOGETHER)],
    ),
    ids=words,
)
def test_a_direction_goes_with_a_setting_or_is_refused(name: str, setting: str, tmp_path: Path) -> None:
    assert not list(problems(name, setting, tmp_path, FAMILY.get(name, "bert")))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), rows())
def test_a_direction_goes_with_settings_together(name: str, settings: Chosen, tmp_path: Path) -> None:
    assert not list(problems(name, settings, tmp_path, FAMILY.get(name, "bert")))


def test_what_is_refused_is_what_cannot_be() -> None:
    refused = {(name, setting) for name, setting in PAIRS if config_of(name, setting) is None}
    whole = {"loss_budget", "target_ascent", "gradient_norm", "half the examples", "an eighth", "weighted"}
    whole |= {"renormalised", "micro_batch", "device", "cheap", "controlled part", "mixed"}
    filters = {"norm", "no_norm", "last:1", "regular expression"}
    one_pass = {(n, s) for n in ("momentum", "random") for s in whole}
    regularisers = {(n, s) for n in ("nbar", "obar", "bi_lora") for s in whole | filters | {"auto"}}
    flat = {("flat_lora", s) for s in whole | filters | {"auto"}}
    parts = {"half the examples", "an eighth", "cheap", "controlled part"}
    mixes = {(n, s) for n in ("gsam", "looksam") for s in filters | parts}
    turns = {("looksam", s) for s in ("every 2", "gradient_norm", "micro_batch", "device")}
    assert refused == one_pass | regularisers | flat | mixes | turns
