# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

from hf_sam.cli.common.images import Images
from hf_sam.cli.common.parsing import parse
from hf_sam.cli.tasks import TASKS

Run = Callable[..., tuple[int, str]]
TINY = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}


def picture(shade: int, mode: str = "RGB") -> Image.Image:
    pixels = np.full((10, 12), shade, dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two classes, dark and light, with pictures of several modes."""
    for split, count in (("train", 6), ("validation", 3)):
        for name, shade in (("dark", 10), ("light", 200)):
            (tmp_path / split / name).mkdir(parents=True)
            for row in range(count):
                picture(shade + row, ("RGB", "L", "RGBA")[row % 3]).save(tmp_path / split / name / f"{row}.png")
    return tmp_path


@pytest.fixture
def argv(tmp_path: Path) -> list[Any]:
    arguments: list[Any] = ["--task", "image", "--model_type", "vit", "--config_overrides", json.dumps(TINY)]
    arguments += ["--output_dir", tmp_path / "out", "--num_train_epochs", 1, "--use_cpu", "--disable_tqdm", "True"]
    return arguments


def built(*arguments: Any) -> Any:
    parsed = parse([str(argument) for argument in arguments], {"image": TASKS["image"].defaults})
    return TASKS["image"].build(*parsed)


@pytest.mark.slow
def test_a_folder_trains_and_the_pipeline_gives_the_written_predictions(
    run: Run, argv: list[Any], folders: Path
) -> None:
    split = ["--train_dir", folders / "train", "--validation_dir", folders / "validation"]
    predict = ["--do_predict", "--test_dir", folders / "validation"]
    assert run(*argv, *split, *predict, "--learning_rate", "0.01", "--num_train_epochs", 5)[0] == 0
    lines = (folders / "out" / "predictions.tsv").read_text(encoding="utf-8").splitlines()[1:]
    files = sorted(str(path) for path in (folders / "validation").rglob("*.png"))
    classify = pipeline("image-classification", model=str(folders / "out"), device="cpu")
    assert [answer[0]["label"] for answer in classify(files, top_k=1)] == [line.split("\t")[1] for line in lines]
    model = AutoModelForImageClassification.from_pretrained(folders / "out")
    assert model.config.id2label == {0: "dark", 1: "light"}
    assert model.dtype == torch.float32


@pytest.mark.slow
def test_a_class_missing_in_the_evaluation_folder_does_not_shift_the_labels(argv: list[Any], folders: Path) -> None:
    for split in ("train", "validation"):
        (folders / split / "between").mkdir()
        picture(100).save(folders / split / "between" / "0.png")
    for path in (folders / "validation" / "between").iterdir():
        path.unlink()
    (folders / "validation" / "between").rmdir()
    task = built(*argv, "--train_dir", folders / "train", "--validation_dir", folders / "validation")
    assert task.model.config.id2label == {0: "between", 1: "dark", 2: "light"}
    assert set(task.evaluation[""].data.labels) == {1, 2}


@pytest.mark.slow
def test_an_unknown_class_in_the_evaluation_folder_is_refused(refuses: Any, argv: list[Any], folders: Path) -> None:
    (folders / "validation" / "black").mkdir()
    picture(0).save(folders / "validation" / "black" / "0.png")
    split = ["--train_dir", folders / "train", "--validation_dir", folders / "validation"]
    refuses([*argv, *split], "--validation_dir", "row 0", "dark, light", "'black'")


@pytest.mark.slow
def test_without_an_evaluation_set_a_share_is_held_out_the_same_for_every_seed(argv: list[Any], folders: Path) -> None:
    arguments = [*argv, "--train_dir", folders / "train", "--validation_share", "0.25"]
    tasks = [built(*arguments, "--seed", seed) for seed in (1, 2)]
    assert [len(task.train) for task in tasks] == [9, 9]
    assert torch.equal(tasks[0].evaluation[""].data.pixels, tasks[1].evaluation[""].data.pixels)


@pytest.mark.parametrize("kind", ["feature", "bytes"])
def test_parquet_with_own_column_names(kind: str, argv: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "images.parquet"
    pictures = [tmp_path / f"{row}.png" for row in range(4)]
    for row, file in enumerate(pictures):
        picture(50 * row).save(file)
    content = [{"bytes": file.read_bytes(), "path": None} for file in pictures]
    data = Dataset.from_dict({"photo": content, "kind": ["b", "a", "b", "a"]})
    if kind == "feature":
        from datasets import Image as ImageFeature

        data = data.cast_column("photo", ImageFeature())
    data.to_parquet(path)
    columns = ["--image_column", "photo", "--label_column", "kind"]
    task = built(*argv, "--train_file", path, "--validation_file", path, *columns)
    assert task.train.labels == [1, 0, 1, 0]
    assert task.train[3]["pixel_values"].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["--image_column", "picture"], ["--image_column picture", "photo, label"]),
        ([], ["photo, label", "--image_column"]),
        (["--image_column", "photo", "--label_column", "gold"], ["--label_column gold", "photo, label"]),
        (["--image_column", "label"], ["'label' holds no images"]),
    ],
)
def test_wrong_columns(refuses: Any, argv: list[Any], tmp_path: Path, columns: list[str], words: list[str]) -> None:
    path = tmp_path / "x.parquet"
    Dataset.from_dict({"photo": [b"1", b"2", b"3"], "label": [0, 1, 1]}).to_parquet(path)
    refuses([*argv, "--train_file", path, "--validation_file", path, *columns], *words)


@pytest.mark.slow
def test_images_decoded_once_and_on_access_are_the_same(
    argv: list[Any], folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = built(*argv, "--train_dir", folders / "train").train
    monkeypatch.setattr("hf_sam.cli.common.images._IN_MEMORY", 0)
    lazy = Images(once.rows, once.where, once.column, once.labels, once.processor)
    assert once.pixels is not None
    assert lazy.pixels is None
    assert all(torch.equal(once[row]["pixel_values"], lazy[row]["pixel_values"]) for row in range(len(once)))


@pytest.mark.slow
def test_a_trained_model_is_evaluated_with_its_own_classes_and_processor(
    run: Run, argv: list[Any], folders: Path
) -> None:
    assert run(*argv, "--train_dir", folders / "train")[0] == 0
    evaluate = ["--task", "image", "--do_train", "False", "--model_name_or_path", folders / "out", "--use_cpu"]
    evaluate += ["--validation_dir", folders / "validation", "--output_dir", folders / "evaluation"]
    assert run(*evaluate, "--disable_tqdm", "True")[0] == 0
    assert "eval_accuracy" in json.loads((folders / "evaluation" / "all_results.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_adapters_on_a_vit_merge_into_an_ordinary_model(run: Run, argv: list[Any], folders: Path) -> None:
    assert run(*argv, "--train_dir", folders / "train", "--lora_r", 2)[0] == 0
    assert pipeline("image-classification", model=str(folders / "out" / "merged"), device="cpu")(picture(0))


@pytest.mark.slow
def test_several_labels_from_a_file_beside_the_images(run: Run, argv: list[Any], folders: Path) -> None:
    tags = {0: "even|small", 1: "odd|small", 2: "even", 3: "odd", 4: "even", 5: "odd"}
    rows = [f"{name}/{row}.png,{name}|{tags[row]}" for name in ("dark", "light") for row in range(6)]
    (folders / "train" / "labels.csv").write_text("\n".join(["file_name,tags", *rows]), encoding="utf-8")
    flat = folders / "new [1]"
    flat.mkdir()
    for name in ("b.png", "a.png"):
        picture(20).save(flat / name)
    more = ["--train_file", folders / "train" / "labels.csv", "--do_predict", "--test_dir", flat]
    assert run(*argv, *more)[0] == 0
    config = AutoModelForImageClassification.from_pretrained(folders / "out").config
    assert config.problem_type == "multi_label_classification"
    assert set(config.id2label.values()) == {"dark", "even", "light", "odd", "small"}
    lines = (folders / "out" / "predictions.tsv").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[2] for line in lines] == ["file", "a.png", "b.png"]


@pytest.mark.slow
def test_label_ids_are_classes_and_not_sizes(argv: list[Any], folders: Path) -> None:
    rows = [f"dark/{row}.png,{(0, 5, 203094)[row % 3]}" for row in range(6)]
    path = folders / "train" / "ids.csv"
    path.write_text("\n".join(["image,label", *rows]), encoding="utf-8")
    task = built(*argv, "--train_file", path, "--validation_file", path)
    assert task.model.config.id2label == {0: "0", 1: "5", 2: "203094"}
    assert task.facts.warnings == ["6 validation rows (100%) are in the training data, too: their scores flatter"]


def test_a_truncated_image_is_named(refuses: Any, argv: list[Any], folders: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = folders / "train" / "dark" / "3.jpg"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])  # its header is whole
    refuses([*argv, "--train_dir", folders / "train"], "row", "dark/3.jpg", "truncated")


def test_a_missing_image_is_named(refuses: Any, argv: list[Any], folders: Path) -> None:
    path = folders / "train" / "ids.csv"
    path.write_text("image,label\ndark/0.png,a\nnowhere.png,b\ndark/1.png,a\nlight/1.png,b\n", encoding="utf-8")
    refuses([*argv, "--train_file", path], "1 of 4 images", "nowhere.png (does not exist)")
