# SPDX-License-Identifier: Apache-2.0
"""Do the model cards that other trainers write say that the model was trained with SAM, and keep what they said?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hf_sam import SAMConfig
from hf_sam.trainer.card_repairs import TAG
from hf_sam.trainer.model_card import HEADING
from tests.clients.runs import mostly_slow


def check(path: Path, rho: float, *said: str, tags: set[str] | None = None) -> None:
    text = path.read_text(encoding="utf-8")
    card = ModelCard(text, ignore_metadata_errors=False)
    assert {TAG, *(tags or ())} <= set(card.data.tags)
    assert card.data.tags.count(TAG) == 1
    assert text.count(HEADING) == 1
    assert f"- rho: {rho}\n" in text
    for line in said:
        assert line in text, line


@pytest.mark.slow
@pytest.mark.parametrize("kind", mostly_slow(["sft", "dpo", "reward", "kto"], "sft"))
def test_trls_card_which_it_writes_at_checkpoints(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from tests.clients.trl_trainers import maker

    trainer: Any = maker(kind, tmp_path)(SAMConfig(rho=0.1), save_strategy="steps", save_steps=3)
    trainer.train()
    said, tags = f"trained with {trainer._name}", {"trl", *trainer._tag_names}
    check(tmp_path / "README.md", 0.1, said, tags=tags)
    trainer.create_model_card("mine", tags="words")
    check(tmp_path / "README.md", 0.1, said, tags={*tags, "words"})


@pytest.mark.slow
@pytest.mark.parametrize("pair", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sentence_transformers_cards_at_checkpoints_and_at_the_end(pair: bool, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from tests.clients.st_trainers import maker

    trainer: Any = maker(tmp_path, pair=pair)(SAMConfig(rho=0.1), save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    trainer.save_model(str(tmp_path / "final"))  # again, over its own card
    title = "CrossEncoder" if pair else "SentenceTransformer"
    tags = {"sentence-transformers", "generated_from_trainer", "cross-encoder" if pair else "sentence-similarity"}
    for folder in ("checkpoint-2", "final"):
        check(tmp_path / folder / "README.md", 0.1, f"# {title}", "### Training Hyperparameters", tags=tags)
    trainer.create_model_card(tags=["words"], language="en", model_name="mine")
    check(tmp_path / "README.md", 0.1, f"# {title}", "language:\n- en", tags={*tags, "words"})


def test_an_adapters_card_which_peft_writes_beside_it(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from tests.promises.runs import trainer_for

    trainer = trainer_for("lora", tmp_path, sam=SAMConfig(rho=0.1), max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    check(tmp_path / "adapter" / "README.md", 0.1, "### Framework versions", tags={"lora"})


def test_a_card_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    from tests.promises.runs import trainer_for

    for sam in (SAMConfig(rho=0.1), SAMConfig(sam_variant="none")):
        trainer = trainer_for("bert", tmp_path, sam=sam, max_steps=1)
        (tmp_path / "README.md").write_text("Mine.\n", encoding="utf-8")
        trainer.train()
        trainer.save_model()
        assert (tmp_path / "README.md").read_text(encoding="utf-8") == "Mine.\n"


@pytest.mark.slow
def test_a_run_without_sam_signs_nothing(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from tests.clients.st_trainers import maker

    trainer = maker(tmp_path)(SAMConfig(sam_variant="none"))
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    assert TAG not in (tmp_path / "final" / "README.md").read_text(encoding="utf-8")
