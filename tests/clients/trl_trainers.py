# SPDX-License-Identifier: Apache-2.0
"""How is each of TRL's trainers built, plain and with the mixin, on a tiny model?"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, set_seed

from hf_sam import SAMConfig, SAMTrainerMixin
from tests.clients.runs import SETTINGS, Make
from tests.clients.words import bad, columns, good, language_model, reward_model, text, tokenizer

pytest.importorskip("trl")
pytest.importorskip("datasets")

from datasets import Dataset
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

ROWS = 24


class SAMSFTTrainer(SAMTrainerMixin, SFTTrainer):
    pass


class SAMDPOTrainer(SAMTrainerMixin, DPOTrainer):
    pass


class SAMRewardTrainer(SAMTrainerMixin, RewardTrainer):
    pass


class SAMKTOTrainer(SAMTrainerMixin, KTOTrainer):
    pass


TRAINERS = {
    "sft": (SFTTrainer, SAMSFTTrainer, SFTConfig),
    "dpo": (DPOTrainer, SAMDPOTrainer, DPOConfig),
    "reward": (RewardTrainer, SAMRewardTrainer, RewardConfig),
    "kto": (KTOTrainer, SAMKTOTrainer, KTOConfig),
}
EXPERIMENTAL = ("cpo", "orpo", "tpo")


def language() -> dict[str, list[Any]]:
    return columns(ROWS, text=text)


def completions() -> dict[str, list[Any]]:
    return columns(ROWS, prompt=text, completion=lambda rng: " " + text(rng))


def chats() -> dict[str, list[Any]]:
    def chat(rng: Any) -> list[dict[str, str]]:
        return [{"role": role, "content": text(rng, 2, 6)} for role in ("user", "assistant") * rng.randint(1, 2)]

    return columns(ROWS, messages=chat)


def preferences() -> dict[str, list[Any]]:
    return columns(ROWS, prompt=text, chosen=good, rejected=bad)


def judgements() -> dict[str, list[Any]]:
    rows = preferences()
    labels = [i % 3 > 0 for i in range(ROWS)]
    texts = [rows["chosen" if label else "rejected"][i] for i, label in enumerate(labels)]
    return {"prompt": rows["prompt"], "completion": texts, "label": labels}


def ranked() -> dict[str, list[Any]]:
    return {**preferences(), **columns(ROWS, reference=good)}


DATA = {"sft": language, "dpo": preferences, "reward": preferences, "kto": judgements, "tpo": ranked}


def classes(kind: str) -> tuple[type, type, type]:
    """Return TRL's trainer, the same with the mixin, and its arguments."""
    if kind in TRAINERS:
        return TRAINERS[kind]
    module = pytest.importorskip(f"trl.experimental.{kind}")
    plain = getattr(module, f"{kind.upper()}Trainer")
    return plain, type(f"SAM{plain.__name__}", (SAMTrainerMixin, plain), {}), getattr(module, f"{kind.upper()}Config")


def make(
    kind: str,
    folder: Path,
    sam: SAMConfig | None,
    *,
    data: Any = None,
    extra: dict[str, Any] | None = None,
    sharp: type | None = None,
    **arguments: Any,
) -> Trainer:
    """Return the trainer of this kind: TRL's own when `sam` is None, otherwise with the mixin."""
    plain, with_mixin, config = classes(kind)
    args = config(str(folder), **{**SETTINGS, "gradient_checkpointing": False, "max_length": 24, **arguments})
    model = reward_model() if kind == "reward" else language_model()
    given = dict(extra or {})
    if kind in ("dpo", "kto") and "peft_config" not in given:
        given["ref_model"] = language_model(seed=1)
    if sam is not None:
        given["sam_config"] = sam
    set_seed(args.seed)
    cls = plain if sam is None else (sharp or with_mixin)
    rows = Dataset.from_dict((data or DATA.get(kind, preferences))())
    return cls(model, args=args, train_dataset=rows, processing_class=tokenizer(), **given)


def maker(kind: str, folder: Path, **fixed: Any) -> Make:
    return partial(make, kind, folder, **fixed)
