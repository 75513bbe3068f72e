# SPDX-License-Identifier: Apache-2.0
"""Write `--help`: the arguments in groups, those of the task first, then SAM's, then the Trainer's."""

from __future__ import annotations

import argparse
from dataclasses import fields

from hf_sam import SAMConfig
from hf_sam.cli.common.arguments import ScriptArguments

# Title -> the field of ScriptArguments that the group begins with.
_BEGINNINGS = {
    "task": "task",
    "model": "model_name_or_path",
    "data": "dataset_name",
    "adapters": "lora_r",
    "run": "dry_run",
}
SAM = "Sharpness-Aware Minimization"
TRAINER = "Trainer (transformers.TrainingArguments)"


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with one spelling of each argument, and with those defaults that say something."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        spelled = [name for name in action.option_strings if "_" not in action.dest or "_" in name or len(name) == 2]
        value = (
            "" if action.nargs == 0 else f" {self._format_args(action, self._get_default_metavar_for_optional(action))}"
        )
        return ", ".join(spelled) + value

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return "True|False" if action.nargs == "?" else action.dest.rpartition("_")[2].upper()

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, []) or action.nargs == 0:
            return action.help
        return super()._get_help_string(action)


def group_names() -> dict[str, list[str]]:
    """Return the arguments beside the Trainer's by the title of their group, in the order of the help."""
    titles = {begin: title for title, begin in _BEGINNINGS.items()}
    groups: dict[str, list[str]] = {title: [] for title in _BEGINNINGS}
    title = "task"
    for each in fields(ScriptArguments):
        title = titles.get(each.name, title)
        groups[title].append(each.name)
    return groups | {SAM: ["preset", *(each.name for each in fields(SAMConfig))]}


def into_groups(parser: argparse.ArgumentParser) -> None:
    """Sort the arguments of a parser, which has to be told its defaults before, into groups of the help."""
    own = list(parser._optionals._group_actions)
    placed: list[argparse.Action] = []
    for title, names in group_names().items():
        group = parser.add_argument_group(title)
        group._group_actions.extend(found := [action for name in names for action in own if action.dest == name])
        placed += found
    rest = [action for action in own if action not in placed and action.dest != "help"]
    parser.add_argument_group(TRAINER)._group_actions.extend(rest)
    parser._optionals._group_actions[:] = [action for action in own if action.dest == "help"]
