# SPDX-License-Identifier: Apache-2.0
"""Are entities counted as conlleval counts them, whatever the scheme of their tags?"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from hf_sam.cli.common.tag_schemes import as_entities, find_scheme, inner_tag
from hf_sam.cli.common.tag_scores import TagScores
from tests.looped import looped

# Two persons side by side and a place, in each scheme.
SENTENCE = {
    "BIO": ["B-PER", "I-PER", "B-PER", "O", "B-LOC"],
    "IOB1": ["I-PER", "I-PER", "B-PER", "O", "I-LOC"],
    "BIOES": ["B-PER", "E-PER", "S-PER", "O", "S-LOC"],
    "BILOU": ["B-PER", "L-PER", "U-PER", "O", "U-LOC"],
}


def scored(names: list[str], truth: list[list[str]], found: list[list[str]]) -> tuple[dict[str, float], list[dict]]:
    """Score tags as a trainer hands them over: padded, with a piece between the words that is not scored."""
    width = 2 * max(map(len, truth)) + 1
    labels = np.full((len(truth), width), -100)
    logits = np.zeros((len(truth), width, len(names)))
    for row, (right, guessed) in enumerate(zip(truth, found, strict=True)):
        for place, (one, two) in enumerate(zip(right, guessed, strict=True)):
            labels[row, 2 * place + 1] = names.index(one)
            logits[row, 2 * place + 1, names.index(two)] = 1
    scores = TagScores(names, find_scheme(truth))
    return scores(SimpleNamespace(predictions=logits, label_ids=labels)), scores.per_class


@looped
@pytest.mark.parametrize("scheme", SENTENCE)
def test_a_scheme_is_found_and_its_entities_counted(scheme: str) -> None:
    tags = SENTENCE[scheme]
    assert find_scheme([tags]).rule.startswith(f"{scheme}:")
    guessed = [*tags[:4], "O"]  # the place is missed
    found, by_type = scored(sorted({*tags}), [tags], [guessed])
    assert found == pytest.approx({"f1": 0.8, "precision": 1.0, "recall": 2 / 3, "accuracy": 0.8})
    assert [(row["class"], row["recall"], row["support"]) for row in by_type] == [("LOC", 0, 1), ("PER", 1, 2)]


def test_an_entity_of_which_a_word_is_wrong_is_wrong() -> None:
    found, _ = scored(["O", "B-PER", "I-PER"], [["B-PER", "I-PER"]], [["B-PER", "O"]])
    assert (found["f1"], found["accuracy"]) == (0, 0.5)


def test_tags_that_mark_no_entities_are_scored_by_word() -> None:
    found, by_tag = scored(["DET", "NOUN"], [["DET", "NOUN", "NOUN"]], [["DET", "NOUN", "DET"]])
    assert found == pytest.approx({"accuracy": 2 / 3, "macro_f1": 2 / 3})
    assert [row["class"] for row in by_tag] == ["DET", "NOUN"]


def test_a_run_that_diverged_names_its_scores() -> None:
    scores = TagScores(["O", "B-X"], find_scheme([["O", "B-X"]]))
    found = scores(SimpleNamespace(predictions=np.full((1, 2, 2), np.nan), label_ids=np.array([[0, 1]])))
    assert found.keys() == {"f1", "precision", "recall", "accuracy"}
    assert all(value != value for value in found.values())


def test_what_looks_wrong_about_tags_is_said() -> None:
    assert "1 entities begin with I-" in find_scheme([["B-A", "O", "I-A"]]).warnings[0]
    assert "'0' (2)" in find_scheme([["B-A", "0", "0"]]).warnings[0]
    assert "--tag_names" in find_scheme([["0", "3"]]).warnings[0]
    assert find_scheme([["B", "I", "O"]]).entities
    assert not find_scheme([["DET", "NOUN"]]).warnings


def test_tags_are_read_as_seqeval_reads_them() -> None:
    assert as_entities(["U-PER", "B_LOC", "M-LOC", "L-LOC", "O", "B"]) == [
        "S-PER", "B-LOC", "I-LOC", "E-LOC", "O", "B-entity"
    ]  # fmt: skip
    assert [inner_tag(tag, ["O", "B-A", "I-A", "B-B"]) for tag in ("B-A", "I-A", "B-B", "O")] == [
        "I-A", "I-A", "B-B", "O"
    ]  # fmt: skip
