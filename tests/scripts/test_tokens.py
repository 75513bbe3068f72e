# SPDX-License-Identifier: Apache-2.0
"""Does a file of sentences with tags become a trained tagger, and is wrong input named?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from transformers import AutoConfig, BertTokenizerFast, pipeline

from hf_sam.cli.common.before_training import before_lines
from hf_sam.cli.common.parsing import parse
from hf_sam.cli.common.word_pieces import split_words
from hf_sam.cli.tasks import TASKS
from tests.scripts.tiny_models import byte_tokenizer

Run = Callable[..., tuple[int, str]]
CONLL = """-DOCSTART- -X- -X- O

the DT B-NP B-FILM
film NN I-NP I-FILM
very RB O O
good JJ O O

plot NN B-NP B-PLOT
bad JJ O O

"""
ROWS = [
    {"tokens": ["the", "film", "good"], "ner_tags": ["B-FILM", "I-FILM", "O"]},
    {"tokens": ["a", "plot"], "ner_tags": ["O", "B-PLOT"]},
] * 4


@pytest.fixture
def argv(bert: Path, tmp_path: Path) -> list[Any]:
    arguments = ["--task", "tokens", "--model_name_or_path", bert, "--output_dir", tmp_path / "out", "--max_length", 32]
    return [*arguments, "--num_train_epochs", 1, "--use_cpu", "--disable_tqdm", "True", "--rho", 0.05]


@pytest.fixture
def conll(tmp_path: Path) -> Path:
    (tmp_path / "train.conll").write_text(CONLL * 8, encoding="utf-8")
    return tmp_path / "train.conll"


def built(*arguments: Any) -> Any:
    parsed = parse([str(argument) for argument in arguments], {"tokens": TASKS["tokens"].defaults})
    return (*parsed, TASKS["tokens"].build(*parsed))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_conll_file_needs_no_other_argument(run: Run, argv: list[Any], conll: Path, tmp_path: Path) -> None:
    more = ["--num_train_epochs", 15, "--learning_rate", 0.02, "--per_device_train_batch_size", 4]
    more += ["--do_predict", "--test_file", conll, "--load_best_model_at_end", "--metric_for_best_model", "f1"]
    assert run(*argv, "--train_file", conll, *more)[0] == 0
    found = json.loads((tmp_path / "out" / "all_results.json").read_text(encoding="utf-8"))
    assert found["eval_f1"] == found["test_f1"] == found["eval_accuracy"] == 1
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.id2label == {0: "O", 1: "B-FILM", 2: "B-PLOT", 3: "I-FILM"}
    first = (tmp_path / "out" / "predictions.conll").read_text(encoding="utf-8").split("\n\n")[0]
    assert first == "the\tB-FILM\nfilm\tI-FILM\nvery\tO\ngood\tO"
    tagger = pipeline("token-classification", model=str(tmp_path / "out"), device="cpu")
    assert {piece["word"]: piece["entity"] for piece in tagger("the film very bad")}["film"] == "I-FILM"
    again = ["--do_train", "False", "--model_name_or_path", tmp_path / "out", "--output_dir", tmp_path / "again"]
    (tmp_path / "words.txt").write_text("the\nfilm\n\n" + "good\n" * 40, encoding="utf-8")
    assert run(*argv, *again, "--do_eval", "False", "--do_predict", "--test_file", tmp_path / "words.txt")[0] == 0
    lines = (tmp_path / "again" / "predictions.conll").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["the\tB-FILM", "film\tI-FILM", ""]
    assert lines[-2:] == ["good\t_", ""]  # beyond --max_length
    assert len(lines) == 2 + 1 + 40 + 1


def test_the_first_piece_of_a_word_has_its_tag(tmp_path: Path) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "##ness", "film"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    names = ["O", "B-X", "I-X"]
    config = AutoConfig.for_model("bert")
    words, tags = [["goodness", "\u200b", "film", "film"]], [[1, 0, 2, 0]]
    found = split_words(words, tags, names, tokenizer, config, 5)
    assert found.data["input_ids"][0] == [2, 4, 5, 6, 3]
    assert found.data["labels"][0] == [-100, 1, -100, 2, -100]
    assert (found.places, found.cut, found.empty) == ([[1, -1, 3, -1]], 1, ["\u200b"])
    assert (found.lengths.longest, found.lengths.cut) == (6, 1)
    every = split_words(words, tags, names, tokenizer, config, 5, label_all=True)
    assert every.data["labels"][0] == [-100, 1, 2, 2, -100]


def test_a_word_has_the_pieces_that_it_has_in_a_text() -> None:
    tokenizer = byte_tokenizer()
    found = split_words(
        [["What", "is", "Paris"]], [[0, 0, 1]], ["O", "B-X"], tokenizer, AutoConfig.for_model("gpt2"), 32
    )
    assert found.data["input_ids"][0] == tokenizer("What is Paris")["input_ids"]
    assert [label for label in found.data["labels"][0] if label >= 0] == [0, 0, 1]


def test_the_page_counts_tags_and_words(argv: list[Any], conll: Path, tmp_path: Path) -> None:
    (tmp_path / "dev.txt").write_text("good JJ O O\n" * 40, encoding="utf-8")
    args, training, task = built(*argv, "--train_file", conll, "--validation_file", tmp_path / "dev.txt")
    page = dict(before_lines(args, training, task))
    assert page["columns"] == "words from 1, tags from 4"
    assert page["labels"] == "tags: BIO: entities begin with B-"
    assert page["B-FILM"].endswith("8  (validation 0)")
    assert page["O"].endswith("24  (validation 30)")
    lines = list(before_lines(args, training, task))
    assert any("validation: 10 of 40 words (25.0%) are cut at --max_length 32" in text for _, text in lines)


@pytest.mark.slow
def test_tags_with_names_of_their_own(argv: list[Any], tmp_path: Path) -> None:
    features = Features(
        {"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=["O", "B-P", "I-P"]))}
    )
    rows = {"tokens": [["the", "film"], ["a", "plot"]] * 4, "ner_tags": [[1, 2], [0, 0]] * 4}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    lists = [row["ner_tags"] for row in Dataset.from_dict(rows)]
    path = write(tmp_path / "a.jsonl", [{"tokens": rows["tokens"][n], "ner_tags": lists[n]} for n in range(8)])
    for more in (["--train_file", path, "--tag_names", "O", "B-P", "I-P"], ["--train_file", tmp_path / "a.parquet"]):
        task = built(*argv, *more)[2]
        assert task.model.config.id2label == {0: "O", 1: "B-P", 2: "I-P"}
        assert "BIO" in task.facts.problem


@pytest.mark.parametrize(
    ("rows", "extra", "words"),
    [
        ([{"tokens": ["a", "b"], "ner_tags": ["O"]}], [], ["row 8", "2 words (a b) and 1 tags", "'ner_tags'"]),
        ([{"tokens": ["a", 3], "ner_tags": ["O", "O"]}], [], ["row 8", "word 1", "must be text, got 3"]),
        ([{"tokens": ["a"], "ner_tags": [None]}], [], ["row 8", "the tag of word 0 ('a') is missing"]),
        ([{"tokens": [], "ner_tags": []}], [], ["row 8", "has no words", "--drop_empty_texts"]),
        ([], ["--label_noise", 0.1], ["--label_noise"]),
        ([], ["--metric_for_best_model", "macro_f1", "--early_stopping_patience", 1], ["macro_f1", "f1, precision"]),
        ([], ["--packing"], ["--packing is for --task sft"]),
        ([], ["--tag_names", "O", "O"], ["--tag_names must all be different"]),
        ([], ["--label_column", "pos"], ["--label_column pos", "tokens, ner_tags"]),
    ],
)  # fmt: skip
def test_bad_input(
    refuses: Any, argv: list[Any], tmp_path: Path, rows: list[Any], extra: list[Any], words: list[str]
) -> None:
    refuses([*argv, "--train_file", write(tmp_path / "bad.jsonl", ROWS + rows), *extra], *words)


def test_a_tag_that_the_training_data_lack(refuses: Any, argv: list[Any], conll: Path, tmp_path: Path) -> None:
    (tmp_path / "dev.conll").write_text("a DT O O\n\nplot NN B-NP B-ACTOR\n", encoding="utf-8")
    files = ["--train_file", conll, "--validation_file", tmp_path / "dev.conll"]
    refuses([*argv, *files], "dev.conll, row 1 (line 3)", "'B-ACTOR' (1)", "B-FILM, B-PLOT", "--tag_names")
    (tmp_path / "dev.txt").write_text("a O\n", encoding="utf-8")
    refuses(
        [*argv, "--train_file", conll, "--validation_file", tmp_path / "dev.txt"], "no column '4'", "--label_column"
    )
    (tmp_path / "prose.txt").write_text("one two three four\n" * 3 + "\n", encoding="utf-8")
    refuses([*argv, "--train_file", tmp_path / "prose.txt"], "one tag only (four)")


@pytest.mark.slow
def test_a_tokenizer_that_does_not_know_the_words_of_its_pieces(
    refuses: Any, argv: list[Any], conll: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.BertTokenizerFast.is_fast", property(lambda self: False))
    refuses([*argv, "--train_file", conll], "--task tokens needs a fast tokenizer", "--tokenizer_name")
