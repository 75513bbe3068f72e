# SPDX-License-Identifier: Apache-2.0
"""Does the model card say how the model was trained, once, and where a reader looks?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hf_sam import VARIANTS, SAMConfig
from hf_sam.trainer.card_repairs import TAG, with_right_metadata, with_right_origin, with_tag
from hf_sam.trainer.model_card import HEADING, NEXT_HEADING, sam_section, with_section
from hf_sam.trainer.run_totals import RunTotals
from tests.models import build
from tests.promises.runs import trainer_for

CARD = f"---\ntags:\n- generated\n---\n\n# model\n\n## Training procedure\n\n{NEXT_HEADING}\n\n- learning_rate: 1e-3\n"
TOTALS = RunTotals(10, 10, 20.0, 0.05, 10, 0.05, 2.0, 10, 1.0)
"""Ten steps, all of which perturbed."""


def test_the_tag_is_not_segment_anythings() -> None:
    assert TAG == "sharpness-aware-minimization"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (None, [TAG]),
        ([], [TAG]),
        ("vision", ["vision", TAG]),
        (["vision", "vit"], ["vision", "vit", TAG]),
        (("vision",), ["vision", TAG]),
        ([TAG, "vision"], [TAG, "vision"]),
        (TAG, [TAG]),
    ],
)
def test_the_tag_is_added_once(tags: object, expected: list[str]) -> None:
    assert with_tag(tags) == expected


def test_the_users_list_of_tags_is_left_alone() -> None:
    tags = ["vision"]
    with_tag(tags)
    assert tags == ["vision"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_section_names_the_variant_and_cites_its_paper(variant: str) -> None:
    section = sam_section(SAMConfig(sam_variant=variant), TOTALS)
    assert f"- variant: {VARIANTS[variant].title}\n" in section
    assert f"```bibtex\n{VARIANTS[variant].citation}\n```\n" in section


def test_the_section_says_what_was_set() -> None:
    section = sam_section(SAMConfig(0.3, "friendly", {"sigma": 0.5, "lmbda": 0.6}, "micro_batch"), TOTALS)
    assert '- rho: 0.3\n- scope: micro_batch\n- options: {"sigma": 0.5, "lmbda": 0.6}\n' in section


def test_the_section_names_the_rounding_where_it_is_not_the_usual_one() -> None:
    assert "rounding" not in sam_section(SAMConfig(), TOTALS)
    section = sam_section(SAMConfig(0.3, "asam", {"eta": 0.5}, sam_rounding="stochastic"), TOTALS)
    assert '- options: {"eta": 0.5}\n- sam_rounding: "stochastic"\n- steps' in section


def test_the_section_has_no_options_where_none_were_given() -> None:
    assert "options" not in sam_section(SAMConfig(), TOTALS)


def test_the_section_says_it_is_not_segment_anything() -> None:
    assert "not Segment Anything" in sam_section(SAMConfig(), TOTALS)


def test_the_section_stands_before_the_hyperparameters() -> None:
    card = with_section(CARD, SAMConfig(), TOTALS)
    assert card.index("## Training procedure") < card.index(HEADING) < card.index(NEXT_HEADING)
    assert card.count(NEXT_HEADING) == 1


def test_the_section_stands_at_the_end_of_a_card_without_hyperparameters() -> None:
    card = with_section("# model\n\nMine.\n", SAMConfig(), TOTALS)
    assert card.startswith("# model\n\nMine.\n\n" + HEADING)
    assert card.endswith("```\n")


def test_nothing_of_the_card_is_lost() -> None:
    assert with_section(CARD, SAMConfig(), TOTALS).replace(f"{sam_section(SAMConfig(), TOTALS)}\n", "") == CARD


def test_a_card_that_has_the_section_keeps_one() -> None:
    once = with_section(CARD, SAMConfig(), TOTALS)
    assert with_section(once, SAMConfig(rho=0.2), TOTALS).count(HEADING) == 1


def test_the_hub_still_reads_the_metadata() -> None:
    assert ModelCard(with_section(CARD, SAMConfig(), TOTALS), ignore_metadata_errors=False).data.tags == ["generated"]


# ----------------------------------------------------------------------------------------------------------------------
# What was done, not what was asked for
# ----------------------------------------------------------------------------------------------------------------------
def test_the_section_says_what_was_done() -> None:
    half = RunTotals(2000, 1000, 3000.0, 0.06, 1000, 0.08, 25.0, 1000, 1.0)
    section = sam_section(SAMConfig(rho=0.1, sam_start=0.5), half)
    assert "50 % of the steps took the gradient at the worst nearby point" in section
    assert "- steps with a perturbation: 1,000 of 2,000 (50 %)\n" in section
    assert "- radius: 0.06 on average, 0.08 at the end\n" in section
    assert "- rise of the loss at the perturbed weights: 0.025 on average\n" in section
    assert "- passes over the data in a step: 1.5 on average\n" in section


def test_each_step_is_said_where_each_perturbed() -> None:
    assert "each step took the gradient at the worst nearby point" in sam_section(SAMConfig(), TOTALS)


@pytest.mark.parametrize("variant", [name for name, kind in VARIANTS.items() if kind.passes != "two"])
def test_a_variant_of_one_pass_is_not_said_to_have_found_the_worst_nearby_point(variant: str) -> None:
    section = sam_section(SAMConfig(sam_variant=variant), RunTotals(10, 10, 10.0, 0.05, 10, 0.05))
    assert "worst nearby" not in section
    assert f"Trained with {VARIANTS[variant].title}" in section
    assert "rise of the loss" not in section


def card_after(tmp_path: Path, sam: SAMConfig, *, train: bool = True, **settings: Any) -> str:
    trainer = trainer_for("bert", tmp_path, sam=sam, max_steps=2, logging_steps=500, **settings)
    trainer.train() if train else trainer.evaluate(trainer.train_dataset)
    trainer.create_model_card()
    return (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("sam", "train"),
    [
        (SAMConfig(), False),
        (SAMConfig(rho=0.0), True),
        (SAMConfig(sam_start="warmup"), True),
    ],
    ids=["evaluation only", "rho 0", "warm-up only"],
)
def test_a_run_that_perturbed_nothing_does_not_claim_it(sam: SAMConfig, train: bool, tmp_path: Path) -> None:
    card = card_after(tmp_path, sam, train=train, warmup_steps=2)
    assert TAG not in card
    assert HEADING not in card


def test_an_evaluation_keeps_what_an_earlier_card_says(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(with_section(CARD, SAMConfig(rho=0.3), TOTALS), encoding="utf-8")
    card = card_after(tmp_path, SAMConfig(), train=False)
    assert sam_section(SAMConfig(rho=0.3), TOTALS) in card
    assert TAG in ModelCard(card).data.tags


def test_a_model_without_a_name_is_not_said_to_be_fine_tuned(tmp_path: Path) -> None:
    card = card_after(tmp_path, SAMConfig())
    assert "This model was trained from scratch on an unknown dataset." in card
    assert "fine-tuned version of []" not in card


class Adapters:
    def __init__(self, name: str) -> None:
        self.peft_config = {"default": None}
        self.config = type("Config", (), {"_name_or_path": name})()


@pytest.mark.parametrize(
    "said", ["was trained from scratch", "is a fine-tuned version of [{0}](https://huggingface.co/{0})"]
)
def test_adapters_of_a_local_base_are_said_to_be_that(said: str, tmp_path: Path) -> None:
    base = str(tmp_path / "minilm")
    text = with_right_origin(f"This model {said.format(base)} on an unknown dataset.", Adapters(base))
    assert text == "This model is fine-tuned from a local checkpoint (minilm) on an unknown dataset."
    hub = "This model is a fine-tuned version of [me/bert](https://huggingface.co/me/bert) on an unknown dataset."
    assert with_right_origin(hub, Adapters("me/bert")) == hub


def test_a_folder_of_this_machine_is_no_base_model(tmp_path: Path) -> None:
    text = f"---\nbase_model: {tmp_path}\ntags:\n- lora\n- base_model:adapter:{tmp_path}\n---\n\nMine.\n"
    card = ModelCard(with_right_metadata(text))
    assert card.data.base_model is None
    assert card.data.tags == ["lora", TAG]
    assert str(tmp_path) not in str(card)
    assert ModelCard(with_right_metadata(text.replace(str(tmp_path), "me/bert"))).data.base_model == "me/bert"


def test_the_card_of_adapters_keeps_the_tag(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    trainer = trainer_for("lora", tmp_path, sam=SAMConfig(rho=0.05), max_steps=1)
    trainer.model.base_model.model.config._name_or_path = str(tmp_path / "base")
    trainer.train()
    trainer.save_model()  # writes PEFT's card, over which the Trainer writes its own, and PEFT its tags again
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert {TAG, "lora"} <= set(card.data.tags)
    assert card.text.count(HEADING) == 1
    assert str(tmp_path) not in str(card)


@pytest.mark.slow
def test_the_table_of_results_has_the_same_columns_after_a_resume(tmp_path: Path) -> None:
    def made() -> Any:
        settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
        extra = {"compute_metrics": lambda _: {"accuracy": 0.123}, "eval_dataset": list(build("bert")[1])}
        return trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.05), max_steps=3, trainer_kwargs=extra, **settings)

    made().train()
    resumed = made()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    resumed.create_model_card()
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines() if line.startswith("| ")]
    assert len(table) == 4
    column = table[0].index("Accuracy")
    assert [line[column] for line in table[1:]] == ["0.123"] * 3
