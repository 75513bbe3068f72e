# SPDX-License-Identifier: Apache-2.0
"""Which of the Trainer's options could two passes get wrong? Each of them, at rho = 0 and above.

Cannot interact, because they act outside `training_step` and on nothing it leaves behind: names and places (run_name,
project, output, hub and tracker settings, log levels), what evaluation does with its outputs (eval_accumulation_steps,
batch_eval_metrics, include_for_metrics, prediction_loss_only, bf16_full_eval, ...), where bytes of a batch lie
(dataloader_pin_memory, prefetch_factor, ...), the hyperparameters of optimizer and schedule, do_train and its like.
Elsewhere: accumulation, clipping, label smoothing, NEFTune, checkpointing of activations, compile, precision
(tests/promises); engines (tests/distributed); optim= (test_optimizers).
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from hf_sam import SAMConfig
from tests.models import build
from tests.options.pairs import assert_climbs_at_rho, assert_plain_at_rho_zero, maker
from tests.promises.runs import differences, fingerprint

EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}

OPTIONS: dict[str, dict[str, Any]] = {
    "empty cache at every step": {"torch_empty_cache_steps": 1},
    "empty cache at every second step": {"torch_empty_cache_steps": 2},
    "evaluation on start": {"eval_on_start": True, **EVALUATED},
    "evaluation at every step": EVALUATED,
    "plateau schedule": {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        **EVALUATED,
        "lr_scheduler_kwargs": {"patience": 0},
    },
    "greedy schedule": {"lr_scheduler_type": "greedy", **EVALUATED},
    "drop last": {"dataloader_drop_last": True, "gradient_accumulation_steps": 4, "max_steps": 5},
    "unused columns": {"remove_unused_columns": False},
    "no seedable sampler": {"accelerator_config": {"use_seedable_sampler": False}},
    "split batches": {"accelerator_config": {"split_batches": True}},
    "dispatched batches": {"accelerator_config": {"dispatch_batches": True, "split_batches": True}},
    "uneven batches": {"accelerator_config": {"even_batches": False}},
    "synchronised batches": {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}},
    "number of steps for accelerate": {
        "accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 3}},
        "gradient_accumulation_steps": 1,
    },
    "data seed": {"data_seed": 5},
    "sequential": {"train_sampling_strategy": "sequential"},
    "tokens not averaged": {"average_tokens_across_devices": False},
    "no cache": {"use_cache": False},
    "cache": {"use_cache": True},
    "hard clipping": {"max_grad_norm": 0.05},
    "weight decay": {"weight_decay": 0.3},
    "label names": {"label_names": ["labels"]},
    "tokens counted": {"include_num_input_tokens_seen": "all"},
    "overflow debugging": {"debug": "underflow_overflow"},
    "log at the first step": {"logging_first_step": True, "logging_steps": 3},
    "log each epoch": {"logging_strategy": "epoch"},
    "checkpointed activations, every second layer": {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"every_n_layers": 2, "use_reentrant": False},
    },
    "workers": {"dataloader_num_workers": 2},
    "persistent workers": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "num_train_epochs": 2},
}
LOGS_ONCE = ("log at the first step", "log each epoch")
FAST = ("evaluation on start", "tokens counted")
CLIMB = [
    "evaluation on start",
    "empty cache at every step",
    "greedy schedule",
    "hard clipping",
    "cache",
    "synchronised batches",
    "overflow debugging",
    "checkpointed activations, every second layer",
    "workers",
]


def marked(names: Any) -> list[Any]:
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("option", marked(OPTIONS))
def test_an_option_is_the_plain_trainers_at_rho_zero(option: str, tmp_path: Any) -> None:
    make = maker(tmp_path, **OPTIONS[option])
    if option in LOGS_ONCE:
        plain = make(None)
        plain.train()
        expected = fingerprint(plain)
        sharp = make(SAMConfig(rho=0.0))
        sharp.train()
        assert differences(expected, fingerprint(sharp)) == []
        return
    plain, sharp = assert_plain_at_rho_zero(make)
    assert plain.state.total_flos == sharp.state.total_flos > 0
    assert plain.state.num_input_tokens_seen == sharp.state.num_input_tokens_seen
    assert (plain.state.num_input_tokens_seen > 0) == ("tokens" in option and "counted" in option)


@pytest.mark.parametrize("option", marked(CLIMB))
def test_an_option_climbs_at_rho_above_zero(option: str, tmp_path: Any) -> None:
    assert_climbs_at_rho(maker(tmp_path, **OPTIONS[option]))


@pytest.mark.parametrize("kind", ["all", pytest.param("non_padding", marks=pytest.mark.slow)])
def test_tokens_are_counted_once(kind: str, tmp_path: Any) -> None:
    data = [{**row, "attention_mask": torch.ones_like(row["input_ids"])} for row in build("llama")[1]]
    for row in data:
        row["attention_mask"][:2] = 0
    make = maker(tmp_path, include_num_input_tokens_seen=kind, data=data, max_steps=2)
    trainer = assert_climbs_at_rho(make)
    assert trainer.state.num_input_tokens_seen == 2 * 8 * (12 if kind == "all" else 10)


def padded(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    fill = {"input_ids": 0, "labels": -100}
    return {
        key: nn.utils.rnn.pad_sequence([row[key] for row in rows], batch_first=True, padding_value=fill[key])
        for key in fill
    }


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_batches_of_similar_length(strategy: str, tmp_path: Any) -> None:
    data = [{key: row[key][: 3 + i % 7] for key in row} for i, row in enumerate(build("llama")[1])]
    kwargs = {"trainer_kwargs": {"data_collator": padded}}
    make = maker(tmp_path, train_sampling_strategy=strategy, data=data, max_steps=6, **kwargs)
    assert_plain_at_rho_zero(make)
    assert_climbs_at_rho(make)


class Augmented(Dataset):
    """Draws from every global stream for each example, as image augmentation does."""

    def __init__(self, rows: list[dict[str, Tensor]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        noise = torch.rand(()) + random.random()
        return {**self.rows[i], "pixel_values": self.rows[i]["pixel_values"] + noise}


@pytest.mark.slow
def test_a_data_set_that_draws_random_numbers(tmp_path: Any) -> None:
    make = maker(tmp_path, "vit", data=Augmented(build("vit")[1]), max_steps=9, num_train_epochs=3)
    assert_plain_at_rho_zero(make)
