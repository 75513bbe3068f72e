# SPDX-License-Identifier: Apache-2.0
"""Is what is wrong named with its rule, and what does not go together with both settings and a way out?"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from hf_sam import VARIANTS, SAMConfig
from hf_sam._checks import check_count, check_number, checked_choice, is_count, known_options, parsed_kwargs
from tests.looped import looped


# ----------------------------------------------------------------------------------------------------------------------
# One setting
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [0, 1, 0.5, Fraction(1, 2), np.float32(0.5), np.float64(0.5), np.int64(1)])
def test_any_real_number_within_the_bounds_becomes_a_float(value: Any) -> None:
    found = check_number("Where", "x", value, least=0, most=1)
    assert type(found) is float
    assert found == value


@looped
@pytest.mark.parametrize(
    "value", [True, False, None, "1", 1j, [1], Decimal(1), torch.tensor(1.0), np.bool_(True), np.ones(1)], ids=repr
)
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        check_number("Where", "x", value, above=0, most=1)
    assert str(caught.value) == f"`Where(x=...)` must be a number > 0 and <= 1, got {value!r}."


@pytest.mark.parametrize(
    ("bounds", "rule", "inside", "outside"),
    [
        ({"least": 0}, " >= 0", [0, 1e300], [-1e-9]),
        ({"above": 0}, " > 0", [1e-300], [0, -1]),
        ({"most": 1}, " <= 1", [1, -1e300], [1 + 1e-9]),
        ({"below": 1}, " < 1", [1 - 1e-9], [1]),
        ({"least": 0.25, "below": 0.5}, " >= 0.25 and < 0.5", [0.25, 0.49], [0.2, 0.5]),
        ({"above": 0, "most": 1}, " > 0 and <= 1", [0.1, 1], [0, 1.1]),
        ({}, "", [-1e300, 0], []),
    ],
)
def test_the_bounds_are_kept_and_named(
    bounds: dict[str, float], rule: str, inside: list[float], outside: list[float]
) -> None:
    for value in inside:
        assert check_number("Where", "x", value, **bounds) == value
    for value in (*outside, math.nan, math.inf, -math.inf, np.float32("nan"), 10**400):
        with pytest.raises(ValueError, match="must be") as caught:
            check_number("Where", "x", value, **bounds)
        assert str(caught.value) == f"`Where(x=...)` must be a finite number{rule}, got {value!r}."


@pytest.mark.parametrize(
    ("bounds", "rule", "inside", "outside"),
    [
        ({}, ">= 1", [1, 10**400], [0, -1]),
        ({"least": 0}, ">= 0", [0], [-1]),
        ({"least": 1, "most": 9}, "from 1 to 9", [1, 9], [0, 10]),
    ],
)
def test_whole_numbers_within_the_bounds_pass_and_others_are_refused(
    bounds: dict[str, int], rule: str, inside: list[int], outside: list[int]
) -> None:
    assert [check_count("Where", "x", value, **bounds) for value in inside] == inside
    no_whole_numbers = [True, 2.0, "2", None, math.nan, np.int64(2)]
    assert not any(is_count(value, **bounds) for value in (*outside, *no_whole_numbers))
    for value in (*outside, *no_whole_numbers):
        with pytest.raises(ValueError, match="must be") as caught:
            check_count("Where", "x", value, **bounds)
        assert str(caught.value) == f"`Where(x=...)` must be a whole number {rule}, got {value!r}."


def test_a_wrong_type_of_count_raises_what_was_asked_for() -> None:
    with pytest.raises(TypeError, match=r"whole number >= 1, got 2\.0"):
        check_count("Where", "x", 2.0, wrong_type=TypeError)
    with pytest.raises(ValueError, match="whole number >= 1, got 0"):
        check_count("Where", "x", 0, wrong_type=TypeError)


@pytest.mark.parametrize("value", ["c", "", None, 0, ["a"]])
def test_what_is_no_choice_is_refused_with_the_choices(value: Any) -> None:
    assert checked_choice("Where(x=...)", "a", ("a", "b")) == "a"
    with pytest.raises(ValueError, match=r"`Where\(x=\.\.\.\)` must be one of a, b, got ") as caught:
        checked_choice("Where(x=...)", value, ("a", "b"))
    assert str(caught.value).endswith(f"got {value!r}.")


def test_an_option_that_does_not_exist_is_refused_with_those_that_do() -> None:
    for kwargs in (None, {}, {"b": 1}, {"a": 1, "b": 2}):
        known_options("choice", "name", iter(["a", "b"]), kwargs)
    for kwargs, wrong, options, known in (
        ({"c": 1}, "'c'", ["a", "b"], "a, b"),
        ({"a": 1, "d": 1, "c": 2}, "'c'", ["a", "b"], "a, b"),
        ({"a": 1}, "'a'", [], "none"),
        ({1: 2, "x": 3}, "1", ["a"], "a"),
    ):
        with pytest.raises(ValueError, match="has no option") as caught:
            known_options("choice", "name", options, kwargs)
        assert str(caught.value) == f"`choice_kwargs` for 'name' has no option {wrong}; its options: {known}."


@pytest.mark.parametrize("value", [{"a": 1}, '{"a": 1}', ' {"a":1}\n', MappingProxyType({"a": 1})])
def test_options_may_be_a_mapping_or_json(value: Any) -> None:
    found = parsed_kwargs("options", value, "{}")
    assert type(found) is dict
    assert found == {"a": 1}


@pytest.mark.parametrize("value", [None, "null", {}, "{}"])
def test_no_options_are_none_or_empty(value: Any) -> None:
    assert not parsed_kwargs("options", value, "{}")


@pytest.mark.parametrize("value", ["[1]", "1", '"text"', "true", 1, [("a", 1)], ("a",)])
def test_what_is_no_mapping_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"`SAMConfig\(options=\.\.\.\)` must be a mapping or None, got "):
        parsed_kwargs("options", value, "{}")


@pytest.mark.parametrize("value", ["", "a=1", "{a: 1}", "{'a': 1}", '{"a": 1'])
def test_what_is_no_json_is_refused_with_an_example(value: str) -> None:
    with pytest.raises(ValueError, match="must be a JSON object such as") as caught:
        parsed_kwargs("options", value, '{"a": 1}')
    start = f"`SAMConfig(options=...)` must be a JSON object such as '{{\"a\": 1}}', got {value!r} ("
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize("name", ["sam_variant_kwargs", "rho_schedule_kwargs", "sam_gate_kwargs"])
def test_options_changed_in_place_are_another_configuration(name: str) -> None:
    """A callback may change the trainer's; the run compares them with those it began with."""
    settings = {"sam_variant": "asam", "rho_schedule": "linear", "sam_gate": "gradient_norm"}
    option = {"sam_variant_kwargs": "eta", "rho_schedule_kwargs": "end", "sam_gate_kwargs": "c_end"}[name]
    theirs = {option: 0.5}
    config = SAMConfig(**settings, **{name: theirs})
    theirs[option] = 0.25
    assert config != SAMConfig(**settings, **{name: theirs})
    assert getattr(config, name) == {option: 0.5}


# ----------------------------------------------------------------------------------------------------------------------
# Two settings
# ----------------------------------------------------------------------------------------------------------------------
SETTINGS: dict[str, Any] = {
    "ascent_fraction": 0.5,
    "sam_gate": "gradient_norm",
    "sam_sharpness_weight": 0.5,
    "sam_renormalise": True,
    "rho_schedule": "cosine",
    "sam_scope": "micro_batch",
    "sam_parameters": "attention.{1,2}weight",  # braces are no place to fill in
    "rho": "auto",
    "sam_every": 2,
    "sam_start": 0.5,
    "sam_stop": 0.5,
    "sam_rounding": "stochastic",
}
NEEDS_A_CLEAN_GRADIENT = {"ascent_fraction", "sam_gate", "sam_sharpness_weight", "sam_renormalise", "sam_scope"}
OWN_CHOICE = {"sam_parameters", "rho"}
# By direction, the settings it does not go with.
REFUSED = {
    "sam": set(),
    "asam": set(),
    "friendly": set(),
    "gsam": {"ascent_fraction", "sam_parameters"},
    "looksam": {"ascent_fraction", "sam_parameters", "sam_gate", "sam_scope", "sam_every"},
    "momentum": NEEDS_A_CLEAN_GRADIENT,
    "random": NEEDS_A_CLEAN_GRADIENT,
    "nbar": NEEDS_A_CLEAN_GRADIENT | OWN_CHOICE,
    "obar": NEEDS_A_CLEAN_GRADIENT | OWN_CHOICE,
    "flat_lora": NEEDS_A_CLEAN_GRADIENT | OWN_CHOICE,
    "bi_lora": NEEDS_A_CLEAN_GRADIENT | OWN_CHOICE,
}
# Of two settings, those that go with no direction together.
APART = {
    frozenset({"ascent_fraction", "sam_sharpness_weight"}),
    frozenset({"ascent_fraction", "sam_renormalise"}),
    frozenset({"ascent_fraction", "sam_gate"}),
    frozenset({"sam_parameters", "sam_sharpness_weight"}),
    frozenset({"sam_parameters", "sam_renormalise"}),
    frozenset({"sam_parameters", "sam_gate"}),
    frozenset({"sam_scope", "sam_gate"}),
    frozenset({"rho", "rho_schedule"}),
}


def refusal(settings: dict[str, Any]) -> str | None:
    """Return how the settings are refused, checked to be a message that helps; None if they are not."""
    try:
        SAMConfig(**settings)
    except ValueError as error:
        message = str(error)
    else:
        return None
    given = {f"{name}={value!r}" for name, value in settings.items()}
    what, reason = re.fullmatch(r"`SAMConfig\((.*)\)` does not go with (.*)", message).groups()
    assert what in given
    assert any(reason.startswith(other) for other in given - {what}), f"names one setting only: {message}"
    follow(settings, message)
    return message


def follow(settings: dict[str, Any], message: str) -> None:
    """Do what the last sentence says; the two settings then go together, whatever else may be wrong."""
    name = message.split("(")[1].split("=")[0]
    rest = {k: v for k, v in settings.items() if k != name}
    way_out = message.rstrip(".").split(". ")[-1]
    if "in sam_variant_kwargs" in way_out:
        rest["sam_variant_kwargs"] = {"k": settings[name]}
    elif leave := re.match(r"(?:Leave|Use) (\w+)=(.*)", way_out):
        rest[leave[1]] = {"1": 1, "'all'": "all", "'always'": "always", "'batch'": "batch"}[leave[2]]
    else:
        assert re.match(r"Leave (it|rho|rho_schedule) out", way_out), f"no way out: {message}"
        if "Leave rho_schedule out" in way_out:
            rest = {k: v for k, v in settings.items() if k != "rho_schedule"}
        if "use sam_variant='sam'" in way_out:
            assert refusal({**settings, "sam_variant": "sam"}) != message
    assert refusal(rest) != message


@looped
@pytest.mark.parametrize("variant", [name for name, v in VARIANTS.items() if v.__module__.startswith("hf_sam.")])
def test_a_direction_refuses_these_settings_and_no_others(variant: str) -> None:
    refused = {name for name, value in SETTINGS.items() if refusal({"sam_variant": variant, name: value})}
    assert refused == REFUSED[variant]


@pytest.mark.parametrize("schedule", ["loss_budget", "target_ascent"])
def test_what_follows_the_clean_gradient_or_the_rise_needs_two_passes(schedule: str) -> None:
    for variant in REFUSED:
        message = refusal({"sam_variant": variant, "rho_schedule": schedule})
        assert (message is None) == (VARIANTS[variant].passes == "two"), variant


@looped
@pytest.mark.parametrize("name", SETTINGS)
def test_these_settings_do_not_go_together_and_all_others_do(name: str) -> None:
    for other in SETTINGS:
        given = {n: SETTINGS[n] for n in (name, other)}
        if {name, other} == {"sam_start", "sam_stop"}:
            continue  # between 0.5 and 0.5 there is nothing: tests/test_config.py
        assert (refusal(given) is not None) == (frozenset({name, other}) in APART), other


def test_what_mixes_is_named() -> None:
    for setting in ({"sam_variant": "gsam"}, {"sam_sharpness_weight": 2.0}, {"sam_renormalise": True}):
        ((name, value),) = setting.items()
        for part in ({"ascent_fraction": 0.5}, {"sam_parameters": "norm"}):
            assert f"does not go with {name}={value!r}, which mixes in the clean gradient" in refusal(
                {**part, **setting}
            )


@pytest.mark.parametrize("variant", ["sam", "gsam", "looksam", "momentum", "nbar"])
def test_settings_that_say_nothing_are_not_refused(variant: str) -> None:
    neutral = {"ascent_fraction": 1, "sam_gate": "always", "sam_sharpness_weight": 1, "sam_scope": "batch"}
    SAMConfig(sam_variant=variant, sam_parameters="all", sam_every=1, sam_renormalise=False, **neutral)


def test_a_look_at_every_step_is_no_wait() -> None:
    """k = 1 is SAM: there is no step between to take up a direction."""
    SAMConfig(sam_variant="looksam", sam_variant_kwargs={"k": 1}, sam_every=2, sam_scope="micro_batch")
