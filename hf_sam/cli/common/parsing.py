# SPDX-License-Identifier: Apache-2.0
"""How do a recipe and the command line become arguments? Dataclass default < task default < recipe < command line."""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from transformers import HfArgumentParser

from hf_sam import SAMTrainingArguments
from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.config.presets import PRESETS, fields_of_preset

# Where the script knows better than TrainingArguments' own defaults. A task may know better still.
DEFAULTS: dict[str, Any] = {
    "do_train": True,
    "do_eval": True,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 50,
    "dataloader_pin_memory": torch.accelerator.is_available(),  # without one it only warns
}


WORDS = {"rho": "auto", "sam_start": "warmup"}
"""Numbers that may also be a word."""


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class PlainParser(argparse.ArgumentParser):
    """A parser whose complaints are the user's errors, like everything else that is wrong with the input."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(message)


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where PyYAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.YAMLError(f"{key!r} is there twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def make_parser() -> HfArgumentParser:
    """Build the parser of everything `finetune.py` understands."""
    parser = _Parser(
        (ScriptArguments, SAMTrainingArguments),
        prog="finetune.py",
        usage="finetune.py [recipe.yaml] [--argument value ...]",
        description="Fine-tune, or train from scratch, a Hugging Face classifier with Sharpness-Aware Minimization.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for action in parser._actions:
        if action.dest in WORDS:
            action.type = _number_or(WORDS[action.dest])
    return parser


def _number_or(word: str) -> Callable[[str], float | str]:
    """Return a type for arguments that are a number or this word, so that anything else is refused where it stands."""

    def convert(text: str) -> float | str:
        return text if text == word else float(text)

    convert.__name__ = f"number or {word}"  # argparse: invalid number or auto value: 'much'
    return convert


def parse(argv: Sequence[str], task_defaults: dict[str, dict[str, Any]]) -> tuple[ScriptArguments, Any]:
    """Parse `argv`, whose first entry may be a recipe. `task_defaults` has one entry for every known task."""
    tokens = list(argv)
    if tokens and tokens[0].endswith((".yaml", ".yml")):
        tokens = read_recipe(Path(tokens.pop(0))) + tokens
    if {"-h", "--help"} & set(tokens):
        parser = make_parser()
        parser.set_defaults(**DEFAULTS)
        parser.print_help()
        raise SystemExit(0)
    given = _given(tokens)
    task = given.get("task", "digits")
    if task not in task_defaults:
        raise UserError(f"--task {task} is unknown{_guess(task, task_defaults)}. Known: {', '.join(task_defaults)}.")
    _check_two_sources(given)
    preset = _preset(given)
    parser = make_parser()
    derived = _derived(task, {**preset, **given}, task_defaults[task])
    parser.set_defaults(**{**DEFAULTS, **task_defaults[task], **preset, **derived})
    if preset:
        tokens.append("--preset=")  # it is filled in here, where it is known what was given
    try:
        script_args, training_args = parser.parse_args_into_dataclasses(args=tokens, look_for_args_file=False)
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        text = re.sub(r"`?SAMConfig\((\w+)=\.\.\.\)`?", r"--\1", one_line(error))  # as typed here
        raise UserError(text) from error
    training_args.preset = given.get("preset")
    return script_args, training_args


def _preset(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the preset that was given, without those that were given beside it."""
    name = given.get("preset")
    if name is None:
        return {}
    if name not in PRESETS:
        raise UserError(f"--preset {name} is unknown{_guess(name, PRESETS)}. Known: {', '.join(PRESETS)}.")
    return fields_of_preset(name, given, given.keys())


def read_recipe(path: Path) -> list[str]:
    """Return the recipe as command line tokens, so that both sources go through the same checks."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise UserError(f"recipe {path} does not exist.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"recipe {path} cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"recipe {path} must be lines of 'argument: value', got {type(content).__name__}.")
    known = [f.name for kind in (ScriptArguments, SAMTrainingArguments) for f in fields(kind) if f.init]
    tokens: list[str] = []
    for key, value in content.items():
        if key not in known:
            raise UserError(f"recipe {path}: unknown key {key!r}{_guess(str(key), known)}. --help lists all of them.")
        tokens += _tokens(key, value)
    try:
        _given(tokens)
    except UserError as error:
        raise UserError(f"recipe {path}: {error}") from error
    return tokens


def _tokens(key: str, value: Any) -> list[str]:
    if value is None:  # 'key:' with nothing behind it leaves the default alone
        return []
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={json.dumps(value) if isinstance(value, dict) else value}"]


def _given(tokens: list[str]) -> dict[str, Any]:
    """Return the arguments that really are in `tokens`, without any default."""
    parser = make_parser()
    names = [action.dest for action in parser._actions]
    unset = object()  # argparse would convert a default that is text, such as its own SUPPRESS
    parser.set_defaults(**dict.fromkeys(names, unset))
    namespace, unknown = parser.parse_known_args(tokens)
    for token in unknown:
        name = token.split("=")[0]
        what = "unknown argument" if token.startswith("-") else "stray value"
        raise UserError(f"{what} {name}{_guess(name, [f'--{n}' for n in names])}. --help lists all of them.")
    return {name: value for name, value in vars(namespace).items() if value is not unset}


def _check_two_sources(given: dict[str, Any]) -> None:
    if given.get("max_steps", -1) > 0 and "num_train_epochs" in given:
        raise UserError(
            "--max_steps and --num_train_epochs both say how long to train: give one (or add --max_steps -1)."
        )


def _derived(task: str, given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Defaults that follow from what was given."""
    derived: dict[str, Any] = {"output_dir": f"outputs/{task}-{given.get('sam_variant', 'sam')}"}
    if given.get("do_eval") is False:
        derived["eval_strategy"] = "no"
    if "early_stopping_patience" not in given and not given.get("load_best_model_at_end"):
        derived["metric_for_best_model"] = None  # without a best model to keep, nothing has to be compared
    else:
        strategy = given.get("eval_strategy", defaults.get("eval_strategy", DEFAULTS["eval_strategy"]))
        if strategy == "no":
            raise UserError(
                "--early_stopping_patience needs evaluations: --eval_strategy must be steps or epoch, got no."
            )
        derived |= {"load_best_model_at_end": True, "save_strategy": strategy}
        if "eval_steps" in given or "eval_steps" in defaults:
            derived["save_steps"] = given.get("eval_steps", defaults.get("eval_steps"))
    return derived


def _guess(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
