# SPDX-License-Identifier: Apache-2.0
"""Do SAM's settings travel with the training arguments, and only once?"""

from __future__ import annotations

import copy
import io
import logging
import pickle
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from transformers.trainer_utils import HPSearchBackend

from hf_sam import SAMConfig, SAMSeq2SeqTrainingArguments, SAMTrainer, SAMTrainerMixin, SAMTrainingArguments
from hf_sam.config.presets import PRESETS
from hf_sam.trainer.arguments import config_of, resolve_config
from hf_sam.trainer.shared_arguments import as_plain, with_sam_fields

CONFIG = SAMConfig(
    rho=0.3,
    sam_variant="asam",
    sam_variant_kwargs={"eta": 0.5},
    sam_scope="micro_batch",
    sam_rounding="stochastic",
)
SETTINGS = {f.name: getattr(CONFIG, f.name) for f in fields(SAMConfig)}


@pytest.fixture
def plain(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none")


@pytest.fixture
def mixed(tmp_path: Path) -> SAMTrainingArguments:
    return SAMTrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none", **SETTINGS)


# ----------------------------------------------------------------------------------------------------------------------
# Where the settings come from
# ----------------------------------------------------------------------------------------------------------------------
def test_settings_beside_the_arguments_are_used(plain: TrainingArguments) -> None:
    assert SAMTrainer(nn.Linear(1, 1), plain, sam_config=CONFIG).sam_config == CONFIG


def test_settings_in_the_arguments_are_used(mixed: SAMTrainingArguments) -> None:
    assert SAMTrainer(nn.Linear(1, 1), mixed).sam_config == CONFIG


def test_neither_means_the_defaults(plain: TrainingArguments) -> None:
    assert SAMTrainer(nn.Linear(1, 1), plain).sam_config == SAMConfig()


def test_both_are_an_error_even_when_they_agree(mixed: SAMTrainingArguments) -> None:
    with pytest.raises(
        ValueError, match=r"`sam_config` was given beside `args` of type SAMTrainingArguments.*Give them once"
    ):
        SAMTrainer(nn.Linear(1, 1), mixed, sam_config=CONFIG)


def test_settings_must_be_a_sam_config(plain: TrainingArguments) -> None:
    with pytest.raises(TypeError, match=r"`sam_config` must be a SAMConfig, got \{'rho': 0\.1\}"):
        SAMTrainer(nn.Linear(1, 1), plain, sam_config={"rho": 0.1})


class OpenTrainer(Trainer):
    """What many users write."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class OpenSAMTrainer(SAMTrainerMixin, OpenTrainer):
    pass


@pytest.mark.parametrize("form", ["position", "keyword"])
def test_settings_are_found_through_a_trainer_of_open_signature(plain: TrainingArguments, form: str) -> None:
    model = nn.Linear(1, 1)
    trainer = (
        OpenSAMTrainer(model, plain, sam_config=CONFIG)
        if form == "position"
        else OpenSAMTrainer(model=model, args=plain, sam_config=CONFIG)
    )
    assert trainer.sam_config == CONFIG


def test_both_are_an_error_through_a_trainer_of_open_signature(mixed: SAMTrainingArguments) -> None:
    with pytest.raises(ValueError, match="Give them once"):
        OpenSAMTrainer(model=nn.Linear(1, 1), args=mixed, sam_config=SAMConfig(rho=0.7))


def test_config_of_checks_again_what_a_search_wrote(mixed: SAMTrainingArguments) -> None:
    mixed.rho = -1.0
    with pytest.raises(ValueError, match=r"got -1\.0"):
        config_of(mixed)


def test_what_a_search_writes_into_the_trainers_arguments_is_in_force(plain: TrainingArguments) -> None:
    trainer = SAMTrainer(nn.Linear(1, 1), plain, sam_config=CONFIG)
    trainer.args.rho = 0.7
    assert trainer.sam_config.rho == 0.7


def test_resolving_returns_a_plain_config(mixed: SAMTrainingArguments) -> None:
    assert type(resolve_config(mixed, None)) is SAMConfig


# ----------------------------------------------------------------------------------------------------------------------
# What the trackers and the checkpoint see
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["plain", "mixed"])
def test_trackers_see_the_settings(kind: str, request: pytest.FixtureRequest) -> None:
    args = request.getfixturevalue(kind)
    trainer = SAMTrainer(nn.Linear(1, 1), args, **({"sam_config": CONFIG} if kind == "plain" else {}))
    logged = trainer.args.to_dict()
    assert {k: logged[k] for k in SETTINGS} == SETTINGS
    assert {"rho", "sam_variant", "sam_scope", "sam_rounding"} <= set(trainer.args.to_sanitized_dict())


def test_the_users_own_arguments_are_left_alone(plain: TrainingArguments) -> None:
    before = dict(vars(plain))
    trainer = SAMTrainer(nn.Linear(1, 1), plain, sam_config=CONFIG)
    assert type(plain) is TrainingArguments
    assert vars(plain) == before
    assert trainer.args is not plain


def test_what_is_set_on_the_users_own_arguments_later_counts(plain: TrainingArguments) -> None:
    trainer = SAMTrainer(nn.Linear(1, 1), plain, sam_config=CONFIG)
    plain.max_steps = 7
    assert trainer.args.max_steps == 7
    trainer.args.learning_rate = 0.25
    assert plain.learning_rate == 0.25


def test_arguments_can_be_shared_by_trainers_with_settings_of_their_own(plain: TrainingArguments) -> None:
    trainers = [SAMTrainer(nn.Linear(1, 1), plain, sam_config=SAMConfig(rho=rho)) for rho in (0.1, 0.2)]
    trainers[0].args.rho = 0.3
    assert [trainer.sam_config.rho for trainer in trainers] == [0.3, 0.2]
    assert "rho" not in Trainer(nn.Linear(1, 1), plain).args.to_dict()


def test_replaced_arguments_hold_the_settings_and_are_others(plain: TrainingArguments) -> None:
    args = with_sam_fields(plain, CONFIG)
    other = replace(args, rho=0.9, max_steps=3)
    assert (other.rho, other.max_steps, other.sam_variant) == (0.9, 3, "asam")
    assert (args.rho, plain.max_steps) == (0.3, -1)


class Derived(SAMTrainingArguments):
    """A user's own."""


@pytest.mark.parametrize(
    ("kind", "saved"),
    [
        (SAMTrainingArguments, TrainingArguments),
        (SAMSeq2SeqTrainingArguments, Seq2SeqTrainingArguments),
        (Derived, Derived),
    ],
)
def test_saved_arguments_are_of_a_class_without_sam_and_hold_the_settings(
    kind: type, saved: type, tmp_path: Path
) -> None:
    plain = as_plain(kind(str(tmp_path), use_cpu=True, rho=0.3))
    assert type(plain) is saved
    assert plain.rho == 0.3
    again = SAMTrainer(nn.Linear(1, 1), plain)
    assert again.sam_config == SAMConfig(rho=0.3)
    plain.rho = 0.4
    assert again.sam_config.rho == 0.4
    with pytest.raises(ValueError, match="Give them once"):
        SAMTrainer(nn.Linear(1, 1), plain, sam_config=CONFIG)


def test_arguments_that_hold_the_settings_are_not_copied(mixed: SAMTrainingArguments) -> None:
    assert SAMTrainer(nn.Linear(1, 1), mixed).args is mixed


def test_extended_arguments_are_still_what_they_were(tmp_path: Path) -> None:
    args = Seq2SeqTrainingArguments(str(tmp_path), use_cpu=True, predict_with_generate=True, learning_rate=0.123)
    extended = with_sam_fields(args, CONFIG)
    assert isinstance(extended, Seq2SeqTrainingArguments)
    assert isinstance(extended, SAMConfig)
    assert extended.predict_with_generate
    assert {k: v for k, v in extended.to_dict().items() if k not in SETTINGS} == args.to_dict()


def test_arguments_of_a_local_class_can_be_extended(tmp_path: Path) -> None:
    class Mine(TrainingArguments):
        pass

    assert isinstance(with_sam_fields(Mine(str(tmp_path), use_cpu=True), CONFIG), Mine)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda args: pickle.loads(pickle.dumps(args)),
    "oldest pickle": lambda args: pickle.loads(pickle.dumps(args, protocol=0)),
    "torch.save": lambda args: torch_round_trip(args),
}


def torch_round_trip(args: Any) -> Any:
    file = io.BytesIO()
    torch.save(args, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("kind", ["plain", "mixed"])
def test_a_copy_of_the_arguments_has_the_same_content(
    kind: str, duplicate: Any, request: pytest.FixtureRequest
) -> None:
    args = request.getfixturevalue(kind)
    args = with_sam_fields(args, CONFIG)
    twin = duplicate(args)
    assert type(twin) is type(args)
    assert twin is not args
    assert twin.to_dict() == args.to_dict()
    assert config_of(twin) == CONFIG


def test_a_copy_does_not_write_through(plain: TrainingArguments) -> None:
    args = with_sam_fields(plain, CONFIG)
    copy.copy(args).rho = 0.9
    assert args.rho == CONFIG.rho


@pytest.mark.parametrize("kind", ["plain", "mixed"])
@pytest.mark.parametrize(
    "show",
    [
        str,
        repr,
    ],
)
def test_arguments_do_not_show_the_users_token(kind: str, show: Any, request: pytest.FixtureRequest) -> None:
    args = request.getfixturevalue(kind)
    args.hub_token = "hf_secret"
    assert "hf_secret" not in show(args)
    assert "hf_secret" not in show(with_sam_fields(args, CONFIG))


# ----------------------------------------------------------------------------------------------------------------------
# Presets, and settings in the wrong place
# ----------------------------------------------------------------------------------------------------------------------
QUIET = {"use_cpu": True, "report_to": "none"}


@pytest.mark.parametrize("kind", [SAMTrainingArguments, SAMSeq2SeqTrainingArguments])
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_may_be_given_with_the_arguments(name: str, kind: type, tmp_path: Path) -> None:
    args = kind(str(tmp_path), preset=name, **QUIET)
    assert config_of(args) == SAMConfig.preset(name)
    assert args.to_dict()["preset"] == name


def test_what_is_given_wins_over_the_preset_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        args = SAMTrainingArguments(str(tmp_path), preset="fast", rho=0.1, ascent_fraction=1.0, **QUIET)
    assert config_of(args) == SAMConfig.preset("fast", rho=0.1, ascent_fraction=1.0)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "preset='fast' has rho='auto'; 0.1, given beside it, is used.",
        "preset='fast' has ascent_fraction=0.25; 1.0, given beside it, is used.",
    ]


def test_a_parser_fills_in_the_preset_where_nothing_else_was_given(tmp_path: Path) -> None:
    argv = ["--output_dir", str(tmp_path), "--preset", "fast", "--rho", "0.2", "--use_cpu"]
    (args,) = HfArgumentParser(SAMTrainingArguments).parse_args_into_dataclasses(argv)
    assert config_of(args) == SAMConfig.preset("fast", rho=0.2)


def test_a_copy_with_changes_keeps_what_was_set(tmp_path: Path) -> None:
    args = SAMTrainingArguments(str(tmp_path), preset="free", **QUIET)
    assert config_of(replace(args, sam_every=2)) == SAMConfig.preset("free", sam_every=2)


def test_arguments_of_the_users_own_have_presets_too(tmp_path: Path) -> None:
    @dataclass
    class Mine(SAMTrainingArguments):
        more: int = 0

    assert config_of(Mine(str(tmp_path), preset="free", more=3, **QUIET)) == SAMConfig.preset("free")


def test_the_method_of_the_same_name_is_still_there(tmp_path: Path) -> None:
    args = SAMTrainingArguments.preset("free", output_dir=str(tmp_path), **QUIET)
    assert config_of(args) == SAMConfig.preset("free")
    assert args.preset is None


def test_an_unknown_preset_is_refused_with_a_guess(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`preset` must be one of .* got 'ful'. Did you mean 'full'\?"):
        SAMTrainingArguments(str(tmp_path), preset="ful", **QUIET)


def test_a_configuration_given_as_arguments_is_told_its_place() -> None:
    config: Any = SAMConfig(rho=0.1)
    with pytest.raises(TypeError, match=r"`args` must be TrainingArguments, got a SAMConfig: .* sam_config="):
        SAMTrainer(nn.Linear(1, 1), config)


def test_a_setting_given_to_the_trainer_is_told_its_place(plain: TrainingArguments) -> None:
    with pytest.raises(TypeError, match=r"`rho` is a setting of SAM .*: give sam_config=SAMConfig\(rho=0\.1\)"):
        SAMTrainer(nn.Linear(1, 1), plain, rho=0.1)
    with pytest.raises(TypeError, match=r"give sam_config=SAMConfig\.preset\('full'\)"):
        SAMTrainer(nn.Linear(1, 1), plain, preset="full")


def test_a_trainer_that_has_an_argument_of_this_name_keeps_it(plain: TrainingArguments) -> None:
    class HasRho(Trainer):
        def __init__(self, *args: Any, rho: float, **kwargs: Any) -> None:
            self.own = rho
            super().__init__(*args, **kwargs)

    kind = type("Both", (SAMTrainerMixin, HasRho), {})
    assert kind(nn.Linear(1, 1), plain, rho=3.0).own == 3.0


def test_an_unknown_argument_is_named_with_what_is_spelt_alike(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"no setting 'learningrate'. Did you mean 'learning_rate'\?"):
        SAMTrainingArguments(str(tmp_path), learningrate=0.1)


# ----------------------------------------------------------------------------------------------------------------------
# A search
# ----------------------------------------------------------------------------------------------------------------------
class Trial:
    """What optuna hands over."""

    params: ClassVar[dict[str, Any]] = {}


def searched(trainer: Any, tried: dict[str, Any]) -> SAMConfig:
    trainer.hp_search_backend, trainer.hp_space = HPSearchBackend.OPTUNA, lambda trial: dict(tried)
    trainer._hp_search_setup(Trial())
    return trainer.sam_config


@pytest.mark.parametrize("first", ["auto", 0.3])
def test_a_search_may_try_words_and_numbers(first: Any, plain: TrainingArguments) -> None:
    trainer = SAMTrainer(nn.Linear(1, 1), plain, sam_config=SAMConfig(rho=first))
    assert searched(trainer, {"rho": "auto"}).rho == "auto"
    assert searched(trainer, {"rho": 0.1, "sam_start": 0.5}).rho == 0.1
    assert searched(trainer, {"sam_start": "warmup", "sam_every": 2.0}) == SAMConfig(
        rho=0.1, sam_start="warmup", sam_every=2
    )
    assert searched(trainer, {"learning_rate": 0.1}).rho == 0.1


def test_a_search_over_presets_is_refused(tmp_path: Path) -> None:
    trainer = SAMTrainer(nn.Linear(1, 1), SAMTrainingArguments(str(tmp_path), **QUIET))
    with pytest.raises(ValueError, match="`preset='free'` was set by a search"):
        searched(trainer, {"preset": "free"})
