# SPDX-License-Identifier: Apache-2.0
"""Which settings are accepted, and how are the others refused?"""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import HfArgumentParser

from hf_sam import VARIANTS, SAMConfig, SAMTrainingArguments
from hf_sam.config.presets import PRESETS
from tests.looped import looped

BAD = [
    ({"rho": -0.1}, ValueError, "`SAMConfig(rho=...)` must be a finite number >= 0, got -0.1."),
    ({"rho": float("nan")}, ValueError, "`SAMConfig(rho=...)` must be a finite number >= 0, got nan."),
    ({"rho": float("inf")}, ValueError, "`SAMConfig(rho=...)` must be a finite number >= 0, got inf."),
    ({"rho": 10**400}, ValueError, "`SAMConfig(rho=...)` must be a finite number >= 0, got 1000"),
    ({"rho": "large"}, TypeError, "`SAMConfig(rho=...)` must be a number >= 0, got 'large'."),
    ({"rho": True}, TypeError, "`SAMConfig(rho=...)` must be a number >= 0, got True."),
    ({"rho": [0.05]}, TypeError, "`SAMConfig(rho=...)` must be a number >= 0, got [0.05]."),
    ({"sam_variant": "msam"}, ValueError, "`SAMConfig(sam_variant=...)` must be one of sam, asam"),
    ({"sam_variant": "msam"}, ValueError, "none, got 'msam'."),
    ({"sam_variant": None}, ValueError, "got None."),
    ({"sam_variant": ["sam"]}, ValueError, "got ['sam']."),
    (
        {"sam_scope": "window"},
        ValueError,
        "`SAMConfig(sam_scope=...)` must be one of batch, device, micro_batch, got 'window'.",
    ),
    (
        {"sam_rounding": "up"},
        ValueError,
        "`SAMConfig(sam_rounding=...)` must be one of nearest, stochastic, got 'up'.",
    ),
    (
        {"sam_variant_kwargs": {"eta": 0.1}},
        ValueError,
        "`sam_variant_kwargs` for 'sam' has no option 'eta'; its options: none.",
    ),
    (
        {"sam_variant": "asam", "sam_variant_kwargs": {"etta": 0.1}},
        ValueError,
        "`sam_variant_kwargs` for 'asam' has no option 'etta'; its options: eta.",
    ),
    (
        {"sam_variant": "asam", "sam_variant_kwargs": {"eta": -1}},
        ValueError,
        "`ASAM(eta=...)` must be a finite number >= 0, got -1.",
    ),
    (
        {"sam_variant": "none", "sam_variant_kwargs": {"eta": 1}},
        ValueError,
        "`SAMConfig(sam_variant_kwargs=...)` must be empty for sam_variant='none', got {'eta': 1}.",
    ),
    (
        {"sam_variant_kwargs": "{eta: 1}"},
        ValueError,
        "`SAMConfig(sam_variant_kwargs=...)` must be a JSON object such as '{\"eta\": 0.01}', got '{eta: 1}'",
    ),
    (
        {"sam_variant_kwargs": "[1]"},
        TypeError,
        "`SAMConfig(sam_variant_kwargs=...)` must be a mapping or None, got [1].",
    ),
    ({"rho_schedule": "step"}, ValueError, "`SAMConfig(rho_schedule=...)` must be one of constant, warmup, linear"),
    (
        {"rho_schedule": "linear", "rho_schedule_kwargs": {"stop": 1}},
        ValueError,
        "`rho_schedule_kwargs` for 'linear' has no option 'stop'; its options: start, end.",
    ),
    (
        {"rho_schedule": "linear", "rho_schedule_kwargs": {"end": -1}},
        ValueError,
        "`rho_schedule_kwargs(end=...)` must be a finite number >= 0, got -1.",
    ),
    (
        {"rho_schedule": "lr", "rho_schedule_kwargs": {"rho_min": 1}},
        ValueError,
        "a finite number >= 0 and <= 0.05, got 1",
    ),
    ({"rho_schedule": "loss_budget", "rho_schedule_kwargs": {"sigma": 0}}, ValueError, "> 0, got 0"),
    ({"rho_schedule": "target_ascent", "rho_schedule_kwargs": {"target": 0}}, ValueError, "> 0, got 0"),
    ({"rho_schedule": "target_ascent", "rho_schedule_kwargs": {"rho_max": 0.01}}, ValueError, ">= 0.05, got 0.01"),
    ({"rho_schedule": "target_ascent", "rho_schedule_kwargs": {"rho_min": 1}}, ValueError, "<= 0.05, got 1"),
    ({"rho_schedule": "target_ascent", "rho_schedule_kwargs": {"smoothing": 1}}, ValueError, "and < 1, got 1"),
    ({"rho_schedule_kwargs": "{"}, ValueError, "`SAMConfig(rho_schedule_kwargs=...)` must be a JSON object such as"),
    ({"sam_start": 1.5}, ValueError, "`SAMConfig(sam_start=...)` must be a finite number >= 0 and <= 1, got 1.5."),
    ({"sam_start": "soon"}, TypeError, "`SAMConfig(sam_start=...)` must be a number >= 0 and <= 1, got 'soon'."),
    ({"sam_stop": -0.5}, ValueError, "`SAMConfig(sam_stop=...)` must be a finite number > 0 and <= 1, got -0.5."),
    ({"sam_start": 0.5, "sam_stop": 0.5}, ValueError, "must be below sam_stop, got 0.5 and 0.5: no step would perturb"),
    ({"sam_every": 0}, ValueError, "`SAMConfig(sam_every=...)` must be a whole number >= 1, got 0."),
    ({"sam_every": 2.5}, ValueError, "`SAMConfig(sam_every=...)` must be a whole number >= 1, got 2.5."),
    ({"sam_gate": "norm"}, ValueError, "`SAMConfig(sam_gate=...)` must be one of always, gradient_norm, got 'norm'."),
    (
        {"sam_gate": "always", "sam_gate_kwargs": {"delta": 0.5}},
        ValueError,
        "`sam_gate_kwargs` for 'always' has no option 'delta'; its options: none.",
    ),
    ({"sam_gate": "gradient_norm", "sam_gate_kwargs": {"delta": 1}}, ValueError, "and < 1, got 1"),
    (
        {"ascent_fraction": 0},
        ValueError,
        "`SAMConfig(ascent_fraction=...)` must be a finite number > 0 and <= 1, got 0.",
    ),
    ({"ascent_fraction": 1.1}, ValueError, "> 0 and <= 1, got 1.1."),
    ({"sam_sharpness_weight": -1}, ValueError, "`SAMConfig(sam_sharpness_weight=...)` must be a finite number >= 0"),
    ({"sam_renormalise": "yes"}, TypeError, "`SAMConfig(sam_renormalise=...)` must be true or false, got 'yes'."),
    ({"sam_variant_kwargs": 3}, TypeError, "`SAMConfig(sam_variant_kwargs=...)` must be a mapping or None, got 3."),
]

NEAR_MISSES = [
    ({"rho": "Auto"}, "got 'Auto'. Did you mean 'auto'?"),
    ({"rho": "atuo"}, "Did you mean 'auto'?"),
    ({"sam_start": "warmp"}, "Did you mean 'warmup'?"),
    ({"sam_variant": "ASAM"}, "Did you mean 'asam'?"),
    ({"sam_variant": "msam"}, "Did you mean 'momentum'?"),
    ({"sam_scope": "micro-batch"}, "Did you mean 'micro_batch'?"),
    ({"rho_schedule": "cosin"}, "Did you mean 'cosine'?"),
    ({"sam_variant": "asam", "sam_variant_kwargs": {"etta": 0.1}}, "Did you mean 'eta'?"),
    ({"variant": "asam"}, "`SAMConfig` has no setting 'variant'. Did you mean 'sam_variant'?"),
    ({"schedule": "lr"}, "Did you mean 'rho_schedule'?"),
    ({"sam_varaint": "sam"}, "Did you mean 'sam_variant'?"),
    ({"eta": 0.1}, "option of 'asam': sam_variant='asam', sam_variant_kwargs={'eta': ...}."),
    ({"end": 0.1}, "option of 'linear': rho_schedule='linear', rho_schedule_kwargs={'end': ...}."),
    ({"delta": 0.5}, "option of 'gradient_norm': sam_gate='gradient_norm', sam_gate_kwargs={'delta': ...}."),
    ({"preset": "full"}, "A preset is SAMConfig.preset('full')"),
    ({"learning_rate": 0.1}, "Its settings: rho, sam_variant, sam_variant_kwargs"),
]


@looped
@pytest.mark.parametrize(("kwargs", "message"), NEAR_MISSES, ids=[f"{n[0]}" for n in NEAR_MISSES])
def test_a_near_miss_is_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        SAMConfig(**kwargs)
    assert message in str(caught.value)


def test_the_name_of_an_unknown_preset_is_guessed() -> None:
    with pytest.raises(ValueError, match=r"one of free, fast, full, lora, got 'ful'. Did you mean 'full'\?"):
        SAMConfig.preset("ful")


def test_the_constructor_shows_its_settings() -> None:
    assert list(inspect.signature(SAMConfig).parameters) == [f.name for f in fields(SAMConfig)]
    assert not hasattr(SAMConfig(), "_given")


@looped
@pytest.mark.parametrize(("kwargs", "error", "message"), BAD, ids=[f"{b[0]}" for b in BAD])
def test_a_bad_value_is_named_with_its_rule(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        SAMConfig(**kwargs)
    assert message in str(caught.value)


@pytest.mark.parametrize(("kwargs", "error", "message"), BAD, ids=[f"{b[0]}" for b in BAD])
def test_training_arguments_refuse_the_same_values(
    kwargs: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        SAMTrainingArguments(str(tmp_path / "out"), **kwargs)
    assert message in str(caught.value)


@pytest.mark.parametrize("rho", [0, 1, 0.05, np.float64(0.05), np.float32(0.5), np.int64(2)])
def test_rho_may_be_any_real_number_and_becomes_a_float(rho: Any) -> None:
    config = SAMConfig(rho=rho)
    assert type(config.rho) is float
    assert config.rho == rho


def test_rho_may_not_be_a_tensor() -> None:
    with pytest.raises(TypeError, match="must be a number"):
        SAMConfig(rho=torch.tensor(0.05))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_settings_and_may_be_changed(name: str) -> None:
    assert SAMConfig.preset(name) == SAMConfig(**PRESETS[name])
    assert SAMConfig.preset(name, sam_stop=0.9).sam_stop == 0.9
    assert name in SAMConfig.preset.__doc__


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"must be one of free, fast, full, lora, got 'cheap'"):
        SAMConfig.preset("cheap")


@pytest.mark.parametrize(("variant", "rho"), [("sam", "auto"), ("asam", "auto"), ("momentum", "auto"), ("gsam", 0.05)])
def test_rho_left_out_is_the_directions_default(variant: str, rho: float | str) -> None:
    assert SAMConfig(sam_variant=variant).rho == rho
    number = {"sam": 0.05, "asam": 0.5, "momentum": 0.5, "gsam": 0.05}[variant]
    assert SAMConfig(sam_variant=variant, rho_schedule="linear").rho == number, "a schedule needs a number"


@looped
@pytest.mark.parametrize("variant", [*VARIANTS, "none"])
def test_every_variant_is_a_choice(variant: str) -> None:
    assert SAMConfig(sam_variant=variant).sam_variant == variant


@pytest.mark.parametrize("kwargs", [{"eta": 0.5}, '{"eta": 0.5}'])
def test_options_may_be_a_mapping_or_json(kwargs: Any) -> None:
    assert SAMConfig(sam_variant="asam", sam_variant_kwargs=kwargs).sam_variant_kwargs == {"eta": 0.5}


def test_json_null_is_no_options() -> None:
    assert SAMConfig(sam_variant_kwargs="null").sam_variant_kwargs is None


@looped
@pytest.mark.parametrize("field", fields(SAMConfig), ids=lambda f: f.name)
def test_every_field_has_help_for_the_command_line(field: Any) -> None:
    assert len(field.metadata["help"]) > 40


@looped
@pytest.mark.parametrize("field", fields(SAMConfig), ids=lambda f: f.name)
def test_every_field_is_documented(field: Any) -> None:
    assert f"{field.name}:" in SAMConfig.__doc__


# ----------------------------------------------------------------------------------------------------------------------
# The command line
# ----------------------------------------------------------------------------------------------------------------------
def parsed(*words: str, kind: type = SAMConfig) -> Any:
    return HfArgumentParser(kind).parse_args_into_dataclasses(list(words))[0]


def test_the_command_line_sets_every_field() -> None:
    words = ["--rho", "0.5", "--sam_variant", "asam", "--sam_variant_kwargs", '{"eta": 0.5}', "--sam_scope", "device"]
    words += ["--sam_rounding", "stochastic", "--rho_schedule", "linear", "--rho_schedule_kwargs", '{"end": 0.5}']
    words += ["--sam_parameters", "no_norm", "--sam_start", "0.25", "--sam_stop", "0.75", "--sam_every", "2"]
    words += ["--ascent_fraction", "0.5"]
    more = {"sam_start": 0.25, "sam_stop": 0.75, "sam_every": 2, "ascent_fraction": 0.5, "sam_parameters": "no_norm"}
    schedule = {"rho_schedule": "linear", "rho_schedule_kwargs": {"end": 0.5}}
    assert parsed(*words) == SAMConfig(0.5, "asam", {"eta": 0.5}, "device", "stochastic", **more, **schedule)


def test_the_command_line_sets_the_gate_and_the_mixing() -> None:
    words = ["--sam_gate", "gradient_norm", "--sam_gate_kwargs", '{"delta": 0.5}', "--sam_start", "warmup"]
    words += ["--sam_sharpness_weight", "0.5", "--sam_renormalise", "True"]
    gate = {"sam_gate": "gradient_norm", "sam_gate_kwargs": {"delta": 0.5}, "sam_start": "warmup"}
    assert parsed(*words) == SAMConfig(**gate, sam_sharpness_weight=0.5, sam_renormalise=True)


def test_an_empty_command_line_gives_the_defaults() -> None:
    assert parsed() == SAMConfig()


def test_training_arguments_parse_both_kinds_of_options(tmp_path: Path) -> None:
    words = ["--output_dir", str(tmp_path), "--rho", "0.2", "--learning_rate", "0.01", "--sam_variant_kwargs", "null"]
    args = parsed(*words, kind=SAMTrainingArguments)
    assert (args.rho, args.learning_rate, args.sam_variant_kwargs) == (0.2, 0.01, None)


@pytest.mark.parametrize("rho", [0.2, 0])
def test_a_json_file_round_trips(tmp_path: Path, rho: float) -> None:
    wanted = SAMConfig(rho, "looksam", {"k": 2, "alpha": 0.5}, "batch")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(vars(wanted)))
    assert HfArgumentParser(SAMConfig).parse_json_file(str(path))[0] == wanted


def test_a_bad_value_on_the_command_line_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got -1\.0"):
        parsed("--rho", "-1.0")
