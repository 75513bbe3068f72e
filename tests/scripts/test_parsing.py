# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_sam import SAMConfig
from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.parsing import parse
from hf_sam.cli.tasks import TASKS
from hf_sam.config.presets import PRESETS
from hf_sam.trainer.arguments import config_of

DEFAULTS = {name: entry.defaults for name, entry in TASKS.items()}


def parsed(*argv: str) -> tuple[Any, Any]:
    return parse([*argv, "--use_cpu"], DEFAULTS)


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_task_default_beats_dataclass_default() -> None:
    assert parsed()[1].learning_rate == 2e-3
    assert parsed("--task", "sst2")[1].learning_rate == 2e-5


def test_recipe_beats_task_default_and_command_line_beats_recipe(recipe: Any) -> None:
    path = recipe("learning_rate: 3e-4\nrho: 0.2\nlabel_noise: 0.1\n")  # YAML reads 3e-4 as text
    script, training = parsed(path, "--rho", "0.3")
    assert (training.learning_rate, training.rho, script.label_noise) == (3e-4, 0.3, 0.1)


def test_a_recipe_can_choose_the_task_and_hold_lists_mappings_and_flags(recipe: Any) -> None:
    script, training = parsed(
        recipe(
            "task: cola\nlora_r: 4\nlora_target_modules: [query, value]\nsam_variant: asam\nbf16: true\n"
            "sam_variant_kwargs: {eta: 0.02}\ndo_eval: false\nconfig_overrides: {hidden_size: 8}\nseed:\n"
        )
    )
    assert (script.task, script.lora_target_modules) == ("cola", ["query", "value"])
    assert script.config_overrides == '{"hidden_size": 8}'
    assert training.sam_variant_kwargs in ({"eta": 0.02}, '{"eta": 0.02}')
    assert (training.bf16, training.do_eval, training.eval_strategy.value, training.seed) == (True, False, "no", 42)


def test_early_stopping_sets_what_it_needs() -> None:
    _, training = parsed("--task", "mrpc", "--early_stopping_patience", "2")
    assert training.load_best_model_at_end
    assert (training.metric_for_best_model, training.save_strategy.value) == ("combined_score", "epoch")
    assert parsed("--task", "mrpc")[1].metric_for_best_model is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rhoo: 0.1\n", ["rhoo", "did you mean 'rho'"]),
        ("rho: much\n", ["recipe", "--rho", "much"]),
        ("rho: [0.1, 0.2]\n", ["recipe", "0.2"]),
        ("- rho\n", ["list"]),
        ("rho: [\n", ["cannot be read"]),
        ("rho: 0.1\nrho: 0.2\n", ["'rho'", "twice"]),
    ],
)
def test_a_bad_recipe_names_itself_and_the_key(recipe: Any, text: str, words: list[str]) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml") as caught:
        parsed(recipe(text))
    assert not [word for word in words if word not in str(caught.value)], caught.value


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--rhoo", "0.1"], ["--rhoo", "did you mean '--rho'"]),
        (["--rh", "0.1"], ["--rh"]),
        (["--rho=-1"], ["--rho must be", "-1"]),
        (["--rho", "a"], ["--rho", "'a'"]),
        (["--sam_variant", "sma"], ["--sam_variant", "sma"]),
        (["--task", "sst-2"], ["sst-2", "did you mean 'sst2'"]),
        (["--label_noise", "1"], ["--label_noise", "[0, 1)", "1.0"]),
        (["--label_noise", "nan"], ["--label_noise", "nan"]),
        (["--max_train_samples", "0"], ["--max_train_samples", "at least 1"]),
        (["--max_steps", "5", "--num_train_epochs", "1"], ["--max_steps", "--num_train_epochs"]),
        (["--early_stopping_patience", "1", "--eval_strategy", "no"], ["--early_stopping_patience", "--eval_strategy"]),
        (["--lora_alpha", "4"], ["--lora_alpha", "--lora_r"]),
        (["--model_type", "vit", "--model_name_or_path", "x"], ["--model_type", "--model_name_or_path"]),
        (["--dtype", "int8"], ["--dtype", "int8"]),
        (["stray"], ["stray"]),
        (["missing.yaml"], ["missing.yaml", "does not exist"]),
    ],
)
def test_a_bad_argument_is_named(argv: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(argv, DEFAULTS)
    assert not [word for word in words if word not in str(caught.value)], caught.value
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------------------
# Presets
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_what_was_not_given(name: str, recipe: Any) -> None:
    for argv in (["--preset", name], [recipe(f"preset: {name}\n")]):
        training = parsed(*argv)[1]
        assert config_of(training) == SAMConfig.preset(name)
        assert training.preset == name
    assert training.output_dir == f"outputs/digits-{training.sam_variant}"


def test_what_is_given_wins_over_the_preset(recipe: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = recipe("preset: fast\nsam_every: 2\n")
    training = parsed(path, "--rho", "0.3", "--ascent_fraction", "1.0")[1]
    assert config_of(training) == SAMConfig.preset("fast", rho=0.3, ascent_fraction=1.0, sam_every=2)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("hf_sam")]
    assert len(said) == 2
    assert all("given beside it, is used" in message for message in said)


def test_an_unknown_preset_is_guessed() -> None:
    with pytest.raises(UserError, match=r"--preset ful is unknown, did you mean 'full'.*Known: free, fast, full, lora"):
        parsed("--preset", "ful")
