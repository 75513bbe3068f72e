# SPDX-License-Identifier: Apache-2.0
"""Set-ups that would run two passes wrongly, and what their users can do instead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import TrainingArguments

from hf_sam.config.sam_config import SAMConfig, variant_of
from hf_sam.engines.deepspeed import refuse_deepspeed_model, refuse_settings
from hf_sam.engines.supported import UNTESTED, refuse_engine
from hf_sam.parameters.choose import chosen

UPDATES_IN_BACKWARD = (
    "{name} updates the weights during the backward pass, so the first pass of a SAM step would already have moved "
    "them. Use an optimizer that updates in `step()`, such as adamw_torch_fused."
)
GENERATES = (
    "{name} generates its data inside `training_step`, so the second pass of a SAM step would see other data than the "
    "first. Use an offline trainer (SFT, DPO, reward modelling)."
)
ONLINE_TRAINERS = {
    "AsyncDistillationTrainer",
    "AsyncGRPOTrainer",
    "GKDTrainer",
    "GOLDTrainer",
    "GRPOTrainer",
    "MiniLLMTrainer",
    "NashMDTrainer",
    "OnlineDPOTrainer",
    "PPOTrainer",
    "RLOOTrainer",
    "XPOTrainer",
}
"""TRL's trainers that generate their data inside `training_step`; most are known by their `_prepare_inputs`, too."""


PAIRS = (
    "`ascent_fraction` below 1 takes some rows of a batch, and {name} keeps the answers of a pair in different rows. "
    "Leave ascent_fraction=1; sam_every and sam_start save time too."
)
ROWS = {"SFTTrainer", "BaseTrainer", "_BaseTrainer"}
"""TRL's trainers whose batches have one row for each example."""


def refuse_request(cls: type, arguments: Iterable[Any]) -> None:
    """Raise for what is known to be wrong before the trainer is built.

    Args:
        cls: the trainer's class.
        arguments: what its constructor was given.

    Raises:
        NotImplementedError: with the reason and the alternative.
    """
    _refuse_repeated_data(cls)
    for argument in arguments:
        if isinstance(argument, TrainingArguments):
            refuse_arguments(argument)
        elif isinstance(argument, nn.Module):
            _refuse_model(argument)
        elif isinstance(argument, tuple) and argument:  # `optimizers` or `optimizer_cls_and_kwargs`
            _refuse_optimizer(argument[0])


def refuse_trainer(trainer: Any, config: SAMConfig) -> None:
    """Raise for engines, optimizers and models under which two passes are wrong, as the trainer has set them up.

    Args:
        trainer: a constructed `transformers.Trainer`.
        config: SAM's settings.

    Raises:
        NotImplementedError: with the reason and the alternative.
        ValueError: if the model is not one that the variant or the choice of parameters is for.
    """
    refuse_arguments(trainer.args)
    if config.ascent_fraction != 1:
        _refuse_pairs(type(trainer))
    refuse_engine(trainer, config)
    if hasattr(trainer, "_buffered_inputs"):  # how trainers derived from GRPO's keep what they generated
        raise NotImplementedError(GENERATES.format(name=type(trainer).__name__))
    _refuse_optimizer(trainer.optimizer)
    if trainer.model is not None:
        _refuse_model(trainer.model)
        chosen(trainer.model, config.sam_parameters)
        variant_of(config).prepare_model(trainer.model)


def refuse_arguments(args: TrainingArguments) -> None:
    """Raise for settings under which two passes are wrong.

    Raises:
        NotImplementedError: with the reason and the alternative.
    """
    if args.deepspeed:
        from accelerate.utils.deepspeed import HfDeepSpeedConfig  # which a Trainer without DeepSpeed need not import

        # Its settings as the arguments have filled them in, where they have.
        refuse_settings(getattr(args, "hf_deepspeed_config", None) or HfDeepSpeedConfig(args.deepspeed))
    optim = str(getattr(args.optim, "value", args.optim))
    if optim in ("lomo", "adalomo") or optim.endswith("_layerwise"):
        raise NotImplementedError(UPDATES_IN_BACKWARD.format(name=f"`optim={optim!r}`"))
    parallelism = getattr(args, "parallelism_config", None)
    if getattr(parallelism, "cp_enabled", False) or getattr(parallelism, "sp_enabled", False):
        raise NotImplementedError(
            "Context and sequence parallelism shard each batch in place, so the second pass would shard it again. "
            "Use shorter sequences, gradient checkpointing or a smaller per_device_train_batch_size."
        )


def _refuse_repeated_data(cls: type) -> None:
    for base in cls.__mro__:
        if base.__module__.split(".")[0] == "trl" and (
            base.__name__ in ONLINE_TRAINERS or "_prepare_inputs" in vars(base)
        ):
            raise NotImplementedError(GENERATES.format(name=cls.__name__))


def _refuse_pairs(cls: type) -> None:
    for base in cls.__mro__:
        if base.__module__.split(".")[0] == "trl" and base.__name__.endswith("Trainer") and base.__name__ not in ROWS:
            raise NotImplementedError(PAIRS.format(name=cls.__name__))


def _refuse_optimizer(optimizer: Any) -> None:
    inner = getattr(optimizer, "optimizer", optimizer)
    cls = inner if isinstance(inner, type) else type(inner)
    if cls.__name__ in ("Lomo", "AdaLomo", "LayerWiseDummyOptimizer"):
        raise NotImplementedError(UPDATES_IN_BACKWARD.format(name=cls.__name__))


def _refuse_model(model: nn.Module) -> None:
    refuse_deepspeed_model(model)
    devices = {p.device for p in model.parameters()}
    if len(devices) > 1 or any(d.type == "meta" for d in devices):
        what = f"a model on {', '.join(sorted(map(str, devices)))}"
        raise NotImplementedError(UNTESTED.format(what=what, way_out="Load the model on one device (no device_map)"))
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
            raise NotImplementedError(f"Sparse gradients are not supported: build {name!r} with sparse=False.")
