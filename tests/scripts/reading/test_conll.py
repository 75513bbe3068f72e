# SPDX-License-Identifier: Apache-2.0
"""Are the sentences of a CoNLL file those that are in it, in each of the formats that people call so?"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.reading.conll import read_sentences
from hf_sam.cli.common.reading.word_columns import find_word_columns, lists_of, with_sentences
from tests.looped import looped

OF_2003 = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n# NN B-NP O\n5 CD I-NP O\n"
WNUT = "@paul\tO\r\n\u200d\tO\r\nNew York\tB-location\r\n\t\r\n#ff\tO\r\n"
GERMEVAL = "#\thttp://a.de [2009]\n1\tSchartau\tB-PER\tO\n2\tsagte\tO\tO\n\n#\thttp://b.de\n1\tBerlin\tB-LOC\tO\n"
MULTICONER = "# id 5239\tdomain=en\nstevie _ _ O\n# _ _ O\ncoco _ _ B-CW\n\n# id 1\tdomain=en\nx _ _ O\n"
TREEBANK = (
    "# sent_id = 1\n# text = Vamos al mar\n1\tVamos\tir\tVERB\t_\t_\t0\troot\t_\t_\n2-3\tal\t_\t_\t_\t_\t_\t_\t_\t_\n"
    "2\ta\ta\tADP\t_\t_\t4\tcase\t_\t_\n3\tel\tel\tDET\t_\t_\t4\tdet\t_\t_\n8.1\tva\tir\tVERB\t_\t_\t_\t_\t0\t_\n\n"
    "1\tSí\tsí\tINTJ\t_\t_\t0\troot\t_\t_\n\n"
)
KAGGLE = 'Sentence #,Word,POS,Tag\nSentence: 1,Thousands,NNS,O\n,London,NNP,B-geo\nSentence: 2,",",",",O\n'


def read(path: Path, tags: str | None = None, *, tagged: bool = True) -> tuple[list[Any], list[Any] | None]:
    table = with_sentences(read_sentences("train_file", str(path)), None)
    columns = find_word_columns(table, words=None, tags=tags, tagged=tagged)
    return lists_of(table, columns.words), None if columns.tags is None else lists_of(table, columns.tags)


@looped
@pytest.mark.parametrize(
    ("name", "text", "words", "tags"),
    [
        ("a.conll", OF_2003, [["EU", "rejects"], ["#", "5"]], [["B-ORG", "O"], ["O", "O"]]),
        ("a.txt", OF_2003, [["EU", "rejects"], ["#", "5"]], [["B-ORG", "O"], ["O", "O"]]),
        ("wnut.conll", WNUT, [["@paul", "\u200d", "New York"], ["#ff"]], [["O", "O", "B-location"], ["O"]]),
        ("germ.tsv", GERMEVAL, [["Schartau", "sagte"], ["Berlin"]], [["O", "O"], ["O"]]),
        ("multi.conll", MULTICONER, [["stevie", "#", "coco"], ["x"]], [["O", "O", "B-CW"], ["O"]]),
        ("es.conllu", TREEBANK, [["Vamos", "a", "el"], ["Sí"]], [["VERB", "ADP", "DET"], ["INTJ"]]),
        ("es.txt", TREEBANK, [["Vamos", "a", "el"], ["Sí"]], [["VERB", "ADP", "DET"], ["INTJ"]]),
        ("k.csv", KAGGLE, [["Thousands", "London"], [","]], [["O", "B-geo"], ["O"]]),
        ("l.csv", 'tokens,ner_tags\n"[\'a\', ""don\'t""]","[3, 0]"\n', [["a", "don't"]], [[3, 0]]),
        ("t.tsv", "tokens\tner_tags\n['a','b']\t['O','B-X']\n", [["a", "b"]], [["O", "B-X"]]),
        ("no-break.bio", "10\u00a0000 O\nb B-X\n", [["10\u00a0000", "b"]], [["O", "B-X"]]),
    ],
)
def test_a_file_is_its_sentences(name: str, text: str, words: Any, tags: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read(tmp_path / name) == (words, tags)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    assert read(tmp_path / f"{name}.gz") == (words, tags)


def test_another_column_can_be_the_tags(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text(OF_2003, encoding="utf-8")
    assert read(tmp_path / "a.conll", "2")[1] == [["NNP", "VBZ"], ["NN", "CD"]]
    (tmp_path / "a.conllu").write_text(TREEBANK, encoding="utf-8")
    assert read(tmp_path / "a.conllu", "lemma")[1] == [["ir", "a", "el"], ["sí"]]


def test_a_file_to_predict_on_needs_no_tags(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("This\nis\n\nGood\n", encoding="utf-8")
    assert read(tmp_path / "a.txt", tagged=False) == ([["This", "is"], ["Good"]], None)


@looped
@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "word O\nb\n\nc O\n", ["line 2", "1 columns", "line 1 has 2", "'b'"]),
        ("a.conll", "a\tO\nb\t\n\nc\tO\n", ["line 2", "column 2 is empty"]),
        ("a.conll", "\n\n-DOCSTART- O\n\n", ["is empty"]),
        ("a.conll", "word O\n" * 2001, ["line 1", "2,001 words", "a blank line is needed"]),
        ("a.csv", "id,tokens,ner_tags\n0,\"['EU' 'rejects']\",\"['B' 'O']\"\n", ["holds the words", "--text_column"]),
        ("a.doc", "a", ["must end in", ".conll"]),
        ("a.jsonl", '{"text": "a", "label": "O"}', ["holds the words", "text, label"]),
    ],
)
def test_what_is_no_sentence_is_named_with_its_line(name: str, text: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    missing = [word for word in ("--train_file", name, *words) if word not in str(caught.value)]
    assert not missing, caught.value
