# SPDX-License-Identifier: Apache-2.0
"""A tiny model, tiny data, and the script as a function."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, set_seed

from hf_sam.cli.finetune import main

WORDS = ["good", "bad", "fine", "poor", "film", "plot", "the", "a", "very", "not"]
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Call the script; return its status and what it wrote on stderr."""

    def call(*argv: object) -> tuple[int, str]:
        capfd.readouterr()
        status = main([str(argument) for argument in argv])
        return status, capfd.readouterr().err

    return call


@pytest.fixture
def refuses(run: Run) -> Callable[..., None]:
    """Check that the script ends with status 2 and one line on stderr that says all of `words`."""

    def check(argv: list[object], *words: str) -> None:
        status, errors = run(*argv)
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert status == 2
        assert len(lines) == 1
        assert "Traceback" not in errors
        missing = [word for word in words if word not in lines[0]]
        assert not missing, lines[0]

    return check


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer with a tokenizer of twenty words, as a checkpoint folder."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """Write rows to a csv file."""

    def write(name: str, header: list[str], rows: list[list[object]]) -> Path:
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
        return path

    return write


@pytest.fixture
def reviews(write_csv: Callable[..., Path]) -> Path:
    """Twelve sentences with labels, for sst2 and cola."""
    rows = [[f"the film very {'good' if row % 2 else 'bad'}", row % 2] for row in range(12)]
    return write_csv("reviews.csv", ["sentence", "label"], rows)


@pytest.fixture
def sst2(bert: Path, reviews: Path, tmp_path: Path) -> list[object]:
    """Arguments of a run of one short epoch, with a radius: "auto" would not perturb in one."""
    return [
        "--task", "sst2", "--model_name_or_path", bert, "--train_file", reviews, "--validation_file", reviews,
        "--output_dir", tmp_path / "out", "--num_train_epochs", 1, "--per_device_train_batch_size", 4,
        "--use_cpu", "--disable_tqdm", "True", "--rho", 0.05,
    ]  # fmt: skip


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; the test skips where there is none."""
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("HF_SAM_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no data in {folder} (HF_SAM_DATA)")
    return folder
