# SPDX-License-Identifier: Apache-2.0
"""TRL's trainer for language models with SAM's mixin, and an evaluation by perplexity."""

from __future__ import annotations

import functools
import importlib.util
import math
from dataclasses import fields
from typing import Any

import torch
from torch.utils.data import Subset
from transformers import Trainer, TrainingArguments

from hf_sam import SAMTrainerMixin
from hf_sam.cli.common.errors import UserError
from hf_sam.trainer.arguments import config_of


def check_trl(task: str) -> None:
    """Raise UserError where TRL is not installed."""
    if importlib.util.find_spec("trl") is None:
        raise UserError(f'--task {task} needs the package trl: pip install "hf-sam[cli,sft]" (Python 3.11 or newer).')


class PerplexityMixin(Trainer):
    """A trainer whose evaluation is the mean over tokens, whatever the batches, and which sends nothing anywhere."""

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch, and keep its sum."""
        result = super().prediction_step(model, inputs, *args, **kwargs)
        count = (inputs["labels"][..., 1:] != -100).sum().to(result[0].device)
        self._sums.append(torch.stack((result[0].float() * count, count.float())))
        return result

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, with the loss of the mean token and its exponential."""
        self._sums: list[torch.Tensor] = []
        output = super().evaluation_loop(*args, **kwargs)
        total, count = self.accelerator.reduce(torch.stack(self._sums).double().sum(dim=0).cpu()).tolist()
        prefix = kwargs.get("metric_key_prefix", "eval")
        loss = total / count if count else math.nan
        output.metrics[f"{prefix}_loss"] = loss
        output.metrics[f"{prefix}_perplexity"] = math.exp(loss) if loss < 700 else math.inf
        return output

    def _send_telemetry(self) -> None:
        """Send nothing."""

    @functools.wraps(Trainer.create_model_card)  # whose arguments it takes
    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card that the other tasks have, with the settings and the results, instead of TRL's."""
        Trainer.create_model_card(self, *args, **kwargs)


@functools.cache
def sft_class() -> Any:
    """Return TRL's SFTTrainer with SAM's mixin."""
    from trl import SFTTrainer  # seconds to import, and an extra

    return type("SAMSFTTrainer", (SAMTrainerMixin, PerplexityMixin, SFTTrainer), {})


def sft_trainer(*, args: Any, padding_free: bool, **given: Any) -> Any:
    """Return the trainer for data that are tokens already, from what a trainer of the other tasks is given."""
    from trl import SFTConfig

    values = {f.name: getattr(args, f.name) for f in fields(TrainingArguments) if f.init}
    prepared = {"max_length": None, "padding_free": padding_free, "dataset_kwargs": {"skip_prepare_dataset": True}}
    for name in ("compute_loss_func", "compute_metrics", "data_collator"):  # TRL's own
        given.pop(name)
    given |= {name: _whole(given[name]) for name in ("train_dataset", "eval_dataset")}
    if given["train_dataset"] is None:  # which TRL wants, also where nothing is trained
        given["train_dataset"] = given["eval_dataset"]
    return sft_class()(args=SFTConfig(**values, **prepared), sam_config=config_of(args), **given)


def _whole(data: Any) -> Any:
    """Return a part of a data set as a data set, which TRL wants."""
    if not isinstance(data, Subset):
        return data
    rows: Any = data.dataset
    return rows.select(data.indices)


def packed(data: Any, limit: int) -> Any:
    """Return rows put together up to the limit, each with its own positions; none is cut."""
    from trl import pack_dataset

    return pack_dataset(data, limit, "bfd")
