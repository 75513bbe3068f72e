# SPDX-License-Identifier: Apache-2.0
"""Set-ups that would run two passes wrongly, and what their users can do instead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import Trainer, TrainingArguments

from hf_sam.config.sam_config import SAMConfig, variant_of
from hf_sam.engines.deepspeed import refuse_deepspeed_model, refuse_settings
from hf_sam.engines.supported import UNTESTED, refuse_engine, refuse_lone_process
from hf_sam.parameters.choose import chosen
from hf_sam.parameters.given import refuse_complex

UPDATES_IN_BACKWARD = (
    "{name} updates the weights during the backward pass, so the first pass of a SAM step would already have moved "
    "them. Use an optimizer that updates in `step()`, such as adamw_torch_fused."
)
PERTURBS = (
    "{name} is sharpness-aware itself, and SAMTrainer would perturb the weights a second time. Give the optimizer that "
    "it wraps (such as torch.optim.AdamW), and its radius as SAMConfig(rho=...)."
)
PRIVATE = (
    "{name} makes training differentially private: it accounts for one gradient of each example and step, and a SAM "
    "step takes two, so that the noise would be too small. Train with sam_variant='none'."
)
PRIVACY = ("opacus", "dp_transformers", "private_transformers", "fastDP", "private_vision", "pyvacy")
"""Packages for differentially private training."""
PER_EXAMPLE = ("grad_sample", "private_grad", "summed_clipped_grad")
"""Where these keep the gradients of a parameter by example."""
WRONG_ORDER = (
    "class {name}({bases}): {first} stands in front of SAMTrainerMixin, so that its training_step would never reach "
    "SAM's. Put the mixin first: class {name}({right})."
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


def refuse_order(cls: type, mixin: type) -> None:
    """Raise for a class in whose bases a Trainer stands before the mixin: it would train plainly, without a word.

    Raises:
        TypeError: with the right order.
    """
    order = cls.__mro__
    if Trainer in order and order.index(Trainer) < order.index(mixin):
        bases = list(cls.__bases__)
        first = next(base for base in bases if Trainer in base.__mro__)
        right = sorted(bases, key=lambda base: mixin not in base.__mro__)
        names = (", ".join(base.__name__ for base in some) for some in (bases, right))
        text = dict(zip(("bases", "right"), names, strict=True))
        raise TypeError(WRONG_ORDER.format(name=cls.__name__, first=first.__name__, **text))


def refuse_request(cls: type, arguments: Iterable[Any]) -> None:
    """Raise for what is known to be wrong before the trainer is built.

    Args:
        cls: the trainer's class.
        arguments: what its constructor was given.

    Raises:
        NotImplementedError: with the reason and the alternative.
    """
    _refuse_repeated_data(cls)
    _refuse_private(cls)
    for argument in arguments:
        if isinstance(argument, TrainingArguments):
            refuse_arguments(argument)
        elif isinstance(argument, nn.Module):
            _refuse_model(argument)
        elif isinstance(argument, tuple) and argument:  # `optimizers` or `optimizer_cls_and_kwargs`
            refuse_optimizer(argument[0])


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
    refuse_optimizer(trainer.optimizer)
    if trainer.model is not None:
        _refuse_model(trainer.model)
        chosen(trainer.model, config.sam_parameters)
        variant_of(config).prepare_model(trainer.model)


def refuse_arguments(args: TrainingArguments) -> None:
    """Raise for settings under which two passes are wrong.

    Raises:
        NotImplementedError: with the reason and the alternative.
    """
    refuse_lone_process(args)
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


def refuse_optimizer(optimizer: Any) -> None:
    """Raise for an optimizer, or a class of one, that steps in backward, perturbs weights or keeps examples private.

    Raises:
        NotImplementedError: with the reason and the alternative.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    cls = inner if isinstance(inner, type) else type(inner)
    if cls.__name__ in ("Lomo", "AdaLomo", "LayerWiseDummyOptimizer"):
        raise NotImplementedError(UPDATES_IN_BACKWARD.format(name=cls.__name__))
    _refuse_private(cls)
    groups = getattr(inner, "param_groups", None) or []
    wraps = hasattr(inner, "base_optimizer") and any("rho" in group for group in groups)
    if wraps or "SAM" in cls.__name__ or (hasattr(cls, "first_step") and hasattr(cls, "second_step")):
        raise NotImplementedError(PERTURBS.format(name=cls.__name__))


def refuse_training_by_others(model: nn.Module) -> None:
    """Raise for a model whose parameters are updated, or whose examples are kept private, in its backward pass.

    Raises:
        NotImplementedError: with the reason and the alternative.
    """
    for module in model.modules():
        _refuse_private(type(module))
    for name, p in model.named_parameters():
        if hasattr(p, "_in_backward_optimizers"):  # of torch.distributed.optim
            raise NotImplementedError(UPDATES_IN_BACKWARD.format(name=f"The optimizer of {name!r}"))
        if any(hasattr(p, kept) for kept in PER_EXAMPLE):
            raise NotImplementedError(PRIVATE.format(name=f"A gradient for each example of {name!r}"))


def _refuse_private(cls: type) -> None:
    if any(base.__module__.partition(".")[0] in PRIVACY for base in cls.__mro__):
        raise NotImplementedError(PRIVATE.format(name=cls.__name__))


def _refuse_model(model: nn.Module) -> None:
    refuse_deepspeed_model(model)
    devices = {p.device for p in model.parameters()}
    if len(devices) > 1 or any(d.type == "meta" for d in devices):
        what = f"a model on {', '.join(sorted(map(str, devices)))}"
        raise NotImplementedError(UNTESTED.format(what=what, way_out="Load the model on one device (no device_map)"))
    refuse_training_by_others(model)
    for name, p in model.named_parameters():
        refuse_complex(repr(name), p)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
            raise NotImplementedError(f"Sparse gradients are not supported: build {name!r} with sparse=False.")
