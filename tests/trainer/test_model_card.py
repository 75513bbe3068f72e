# SPDX-License-Identifier: Apache-2.0
"""Does the model card say how the model was trained, once, and where a reader looks?"""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from hf_sam import VARIANTS, SAMConfig
from hf_sam.trainer.model_card import HEADING, NEXT_HEADING, TAG, sam_section, with_section, with_tag

CARD = f"---\ntags:\n- generated\n---\n\n# model\n\n## Training procedure\n\n{NEXT_HEADING}\n\n- learning_rate: 1e-3\n"


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
    section = sam_section(SAMConfig(sam_variant=variant))
    assert f"- variant: {VARIANTS[variant].title}\n" in section
    assert f"```bibtex\n{VARIANTS[variant].citation}\n```\n" in section


def test_the_section_says_what_was_set() -> None:
    section = sam_section(SAMConfig(0.3, "friendly", {"sigma": 0.5, "lmbda": 0.6}, "micro_batch"))
    assert '- rho: 0.3\n- scope: micro_batch\n- options: {"sigma": 0.5, "lmbda": 0.6}\n' in section


def test_the_section_names_the_rounding_where_it_is_not_the_usual_one() -> None:
    assert "rounding" not in sam_section(SAMConfig())
    section = sam_section(SAMConfig(0.3, "asam", {"eta": 0.5}, sam_rounding="stochastic"))
    assert '- options: {"eta": 0.5}\n- sam_rounding: "stochastic"\n\n```' in section


def test_the_section_has_no_options_where_none_were_given() -> None:
    assert "options" not in sam_section(SAMConfig())


def test_the_section_says_it_is_not_segment_anything() -> None:
    assert "not Segment Anything" in sam_section(SAMConfig())


def test_the_section_stands_before_the_hyperparameters() -> None:
    card = with_section(CARD, SAMConfig())
    assert card.index("## Training procedure") < card.index(HEADING) < card.index(NEXT_HEADING)
    assert card.count(NEXT_HEADING) == 1


def test_the_section_stands_at_the_end_of_a_card_without_hyperparameters() -> None:
    card = with_section("# model\n\nMine.\n", SAMConfig())
    assert card.startswith("# model\n\nMine.\n\n" + HEADING)
    assert card.endswith("```\n")


def test_nothing_of_the_card_is_lost() -> None:
    assert with_section(CARD, SAMConfig()).replace(f"{sam_section(SAMConfig())}\n", "") == CARD


def test_a_card_that_has_the_section_keeps_one() -> None:
    once = with_section(CARD, SAMConfig())
    assert with_section(once, SAMConfig(rho=0.2)).count(HEADING) == 1


def test_the_hub_still_reads_the_metadata() -> None:
    assert ModelCard(with_section(CARD, SAMConfig()), ignore_metadata_errors=False).data.tags == ["generated"]
