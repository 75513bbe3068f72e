# SPDX-License-Identifier: Apache-2.0
"""Is each of TRL's trainers, also its experimental ones, either shown to work or refused?"""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
from pathlib import Path
from typing import Any

import pytest

from hf_sam import SAMConfig, SAMTrainerMixin
from hf_sam.trainer.unsupported import _refuse_pairs

pytest.importorskip("trl")

import trl
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.clients.words import columns, language_model, text, tokenizer

OFFLINE = {"CPOTrainer", "DPOTrainer", "KTOTrainer", "ORPOTrainer", "RewardTrainer", "SFTTrainer", "TPOTrainer"}
ABSTRACT = {"_BaseTrainer"}
FOLDER = Path(trl.__file__).parent


@functools.cache
def trainer_classes() -> dict[str, str]:
    """Return where each class is defined whose name ends in Trainer, read from TRL's source."""
    found = {}
    for path in sorted(FOLDER.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.parse(source).body if "Trainer(" in source else ():
            if isinstance(node, ast.ClassDef) and node.name.endswith("Trainer") and node.bases:
                found[node.name] = ".".join(["trl", *path.relative_to(FOLDER).with_suffix("").parts])
    return found


ONLINE = {name: where for name, where in trainer_classes().items() if name not in OFFLINE | ABSTRACT}


def test_trl_has_the_trainers_these_tests_are_about() -> None:
    assert trainer_classes().keys() >= OFFLINE
    assert ONLINE.keys() >= {"GRPOTrainer", "RLOOTrainer", "DistillationTrainer"}
    assert {name for _, name, _ in pkgutil.iter_modules([str(FOLDER)])} >= {"trainer", "experimental"}


@pytest.mark.parametrize("name", ONLINE)
def test_a_trainer_that_makes_its_own_data_is_refused_before_it_is_built(name: str) -> None:
    try:
        online = getattr(importlib.import_module(ONLINE[name]), name)
    except ImportError as error:
        pytest.skip(f"needs another package: {error}")
    sharp = type(f"SAM{name}", (SAMTrainerMixin, online), {})
    with pytest.raises(NotImplementedError, match=r"second pass of a SAM step would see other data.*offline trainer"):
        sharp(sam_config=SAMConfig())


@pytest.mark.parametrize("name", sorted(OFFLINE))
def test_a_part_of_a_batch_is_refused_where_its_rows_are_pairs(name: str) -> None:
    where = trainer_classes()[name]
    sharp = type(f"SAM{name}", (SAMTrainerMixin, getattr(importlib.import_module(where), name)), {})
    if name == "SFTTrainer":
        _refuse_pairs(sharp)
        return
    with pytest.raises(NotImplementedError, match=r"`ascent_fraction` below 1 .* Leave ascent_fraction=1"):
        _refuse_pairs(sharp)


def reward(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(c)) for c in completions]


@pytest.mark.parametrize(("online", "config"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
@pytest.mark.parametrize("active", [True, False])
def test_grpo_and_rloo_run_with_the_mixin_only_when_sam_is_off(
    online: type, config: type, active: bool, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")

    sharp = type(f"SAM{online.__name__}", (SAMTrainerMixin, online), {})
    sizes = {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 4, "max_steps": 2}
    options = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "beta": 0.0, **sizes}
    args = config(str(tmp_path), **options)
    given = {"args": args, "reward_funcs": reward, "processing_class": tokenizer()}
    rows = datasets.Dataset.from_dict(columns(4, prompt=text))
    if active:
        with pytest.raises(NotImplementedError, match="second pass"):
            sharp(language_model(), train_dataset=rows, sam_config=SAMConfig(), **given)
        return
    trainer = sharp(language_model(), train_dataset=rows, sam_config=SAMConfig(sam_variant="none"), **given)
    trainer.train()
    assert trainer.state.global_step == 2
