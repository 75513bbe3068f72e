# SPDX-License-Identifier: Apache-2.0
"""Which model is trained? A pretrained one, one built from a config, or adapters on either."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.errors import HUB_ERROR, UserError, one_line

# What transformers raises for a name that is no model, a broken file, no network, and a wrong value in a config.
LOADING_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    SafetensorError,
    HUB_ERROR,
    StrictDataclassError,
)


def load_config(args: ScriptArguments, names: Sequence[str] | None, *, keep_labels: bool = False) -> Any:
    """Return the model's config for these classes; `names` is None for regression. A trained model may keep its own."""
    source = args.model_name_or_path or args.config_name
    hub = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}
    where = f"--model_name_or_path {source}" if args.model_name_or_path else f"--config_name {source}"
    if source is None and args.model_type is None:
        raise UserError(
            f"--task {args.task} needs a model: --model_name_or_path for a pretrained one, "
            "or --model_type (with --config_overrides) to train from scratch."
        )
    try:
        if source is not None:
            config = AutoConfig.from_pretrained(source, **hub)
        else:
            where = f"--model_type {args.model_type}"
            config = AutoConfig.for_model(args.model_type)
        _override(config, args.config_overrides)
        if not keep_labels:
            set_labels(config, names)
    except LOADING_ERRORS as error:
        raise UserError(f"{where} cannot be loaded: {one_line(error)}") from error
    return config


def parse_overrides(text: str | None) -> dict[str, Any]:
    """Return the JSON object in `--config_overrides`."""
    try:
        overrides = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise UserError(f"--config_overrides must be a JSON object, got {text!r}: {error}.") from error
    if not isinstance(overrides, dict):
        raise UserError(f"--config_overrides must be a JSON object, got {text!r}.")
    return overrides


def _override(config: Any, text: str | None) -> None:
    known = config.to_dict()
    for key, value in parse_overrides(text).items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            guess = f", did you mean {close[0]!r}?" if close else ""
            raise UserError(f"--config_overrides: {config.model_type} has no {key!r}{guess}.")
        try:
            setattr(config, key, value)
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise UserError(f"--config_overrides: {one_line(error)}") from error


def set_labels(config: Any, names: Sequence[str] | None, kind: str = "classification") -> None:
    """Write the classes into the config, where a pipeline looks for them; no names for regression."""
    if not names:
        config.num_labels = 1
        config.problem_type = "regression"
        return
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = "multi_label_classification" if kind == "multilabel" else "single_label_classification"


def load_model(args: ScriptArguments, auto_class: Any, config: Any, *, new_head: bool = False) -> Any:
    """Return the model, pretrained or new, with float32 weights unless `--dtype` says otherwise.

    `new_head` replaces a head that was trained on other classes, whatever its size.
    """
    dtype = getattr(torch, args.dtype)
    if args.model_name_or_path is None:
        try:
            return auto_class.from_config(config, trust_remote_code=args.trust_remote_code).to(dtype)
        except LOADING_ERRORS as error:
            raise UserError(f"--config_overrides build no {config.model_type} classifier: {one_line(error)}") from error
    where = f"--model_name_or_path {args.model_name_or_path}"
    try:
        model, info = auto_class.from_pretrained(
            args.model_name_or_path,
            config=config,
            dtype=dtype,
            revision=args.model_revision,
            trust_remote_code=args.trust_remote_code,
            ignore_mismatched_sizes=args.ignore_mismatched_sizes or new_head,
            output_loading_info=True,
        )
    except LOADING_ERRORS as error:
        hint = " (--ignore_mismatched_sizes starts with a new head)" if "mismatch" in str(error) else ""
        raise UserError(
            f"{where} cannot be loaded as a {config.model_type} classifier{hint}: {one_line(error)}"
        ) from error
    body = {name for name, _ in model.named_parameters() if name.startswith(f"{model.base_model_prefix}.")}
    if body and body <= set(info["missing_keys"]):
        raise UserError(f"{where} holds no weights of a {config.model_type}: it is a checkpoint of another model.")
    if new_head and not info["mismatched_keys"]:
        _renew_head(args, auto_class, model, set(info["missing_keys"]))
    return model


def _renew_head(args: ScriptArguments, auto_class: Any, model: Any, missing: set[str]) -> None:
    """Start the head anew, unless it is new because the checkpoint had none."""
    heads = head_modules(model)
    if all(f"{head}.{name}" in missing for head in heads for name, _ in model.get_submodule(head).named_parameters()):
        return
    fresh = auto_class.from_config(model.config, trust_remote_code=args.trust_remote_code)
    for head in heads:
        model.get_submodule(head).load_state_dict(fresh.get_submodule(head).state_dict())


def head_modules(model: Any) -> list[str]:
    """Return the names of the layers on top of the body: new for this task, so trained in full beside adapters."""
    return [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]


def add_lora(args: ScriptArguments, model: Any) -> Any:
    """Wrap the model in LoRA adapters if `--lora_r` asks for them."""
    if args.lora_r is None:
        return model
    from peft import LoraConfig, TaskType, get_peft_model  # slow to import, and an optional package

    head = head_modules(model)
    is_text = type(model).__name__.endswith("ForSequenceClassification")
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha if args.lora_alpha is not None else 2 * args.lora_r,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_target_modules or "all-linear",
        exclude_modules=head,
        modules_to_save=head,
        task_type=TaskType.SEQ_CLS if is_text else None,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"--lora_target_modules {config.target_modules}: {one_line(error)}") from error
