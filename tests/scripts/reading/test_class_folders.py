# SPDX-License-Identifier: Apache-2.0
"""Is every file of a folder of classes there, whatever it is called, and said which are not?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_sam.cli.common.data import read_folder
from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.reading.class_folders import list_class_folders
from hf_sam.cli.common.reading.plain_text import read_text_folder
from tests.looped import looped

ENDINGS = frozenset({".png"})


def put(root: Path, *names: str, content: bytes | None = None) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None and path.suffix.lower() in (".png", ".jpeg"):
            Image.new("RGB", (4, 4)).save(path, "PNG")
        else:
            path.write_bytes(content or b"x")
    return root


@pytest.mark.parametrize("classes", [("bus", "train"), ("positive", "test"), ("train", "test"), ("val[1]", "a*b")])
def test_names_of_sets_and_patterns_are_names(classes: tuple[str, str], tmp_path: Path) -> None:
    files = ("train_1.png", "ILSVRC2012_val_00000293.JPEG", "img-dev-7.png", "test.png", "[a]*.png")
    root = put(tmp_path / "photos [2024]*", *(f"{name}/{file}" for name in classes for file in files))
    put(tmp_path / "photos 2", "other/a.png", "more/b.png")
    table = read_folder("train_dir", str(root))
    assert sorted(table.values("file")) == sorted(f"{name}/{file}" for name in classes for file in files)
    assert [name.split("/")[0] for name in table.values("file")] == table.values("label")


def test_what_is_left_out_and_what_lies_deeper_is_said(tmp_path: Path) -> None:
    root = put(
        tmp_path, "a/1.png", "a/deep/er/2.png", "b/3.PNG", "loose.png", "a/._1.png", "a/Thumbs.db", "empty/x.txt"
    )
    found = list_class_folders("x", root, ENDINGS, "images", flat=False)
    assert [str(file.relative_to(root)) for file in found.files] == ["a/1.png", "a/deep/er/2.png", "b/3.PNG"]
    assert found.labels == ["a", "a", "b"]
    notes = "; ".join(found.notes)
    for words in ("3 other files are left out", "1 images beside the class folders", "1 images lie deeper", "empty"):
        assert words in notes


def test_links_to_folders_are_followed_and_a_circle_ends(tmp_path: Path) -> None:
    root = put(tmp_path / "data", "a/1.png", "b/2.png")
    put(tmp_path / "elsewhere", "3.png")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    assert list_class_folders("x", root, ENDINGS, "images", flat=False).labels == ["a", "b", "c"]


@looped
@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["a/1.png"], ["only 'a' holds images", "at least 2"]),
        (["all/a/1.png", "all/b/1.png"], ["--train_dir", "holds 2 folders"]),
        (["1.png"], ["found 1 images and no class folders"]),
        (["a/1.txt"], ["found no images"]),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"], ["sets with class folders", "train "]),
    ],
)
def test_a_folder_without_classes_is_refused(
    files: list[str], words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = put(tmp_path_factory.mktemp("x"), *files)
    with pytest.raises(UserError) as caught:
        list_class_folders("--train_dir x", root, ENDINGS, "images", flat=False)
    assert not [word for word in words if word not in str(caught.value)], caught.value


def test_a_folder_to_predict_on_may_be_flat(tmp_path: Path) -> None:
    table = read_folder("test_dir", str(put(tmp_path, "10.png", "9.png")), True)
    assert table.values("file") == ["10.png", "9.png"]
    assert "label" not in table.names


def test_every_image_that_would_be_read_wrongly_is_named(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/1.png")
    put(tmp_path, "a/text.png", "b/IMG_1.HEIC", content=b"no image")
    deep = Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16))
    deep.save(tmp_path / "a" / "deep.png")
    page = Image.new("L", (4, 4))
    page.save(tmp_path / "b" / "bands.png", "TIFF", save_all=True, append_images=[page] * 12)
    with pytest.raises(UserError) as caught:
        read_folder("train_dir", str(tmp_path))
    for words in ("4 of 6 images", "a/text.png (no image)", "b/IMG_1.HEIC (HEIC", "a/deep.png (more than 8 bits",
                  "b/bands.png (13 pages"):  # fmt: skip
        assert words in str(caught.value)


def test_texts_in_folders(tmp_path: Path) -> None:
    put(tmp_path, "neg/1.txt", content="schäbig".encode("cp1252"))
    put(tmp_path, "pos/1.txt", content="schön\n".encode("utf-8-sig"))
    columns, notes = read_text_folder("x", tmp_path)
    assert columns == {"text": ["schäbig", "schön\n"], "file": ["neg/1.txt", "pos/1.txt"], "label": ["neg", "pos"]}
    assert "1 files are not UTF-8" in notes[0]
