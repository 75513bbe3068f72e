# SPDX-License-Identifier: Apache-2.0
"""How do plain text files become rows? A line is a text, or a file is one and its folder the class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.reading.class_folders import ClassFolders, list_class_folders
from hf_sam.cli.common.reading.encodings import decode, read_bytes

ENDINGS = frozenset({".txt", ".text", ".md"})
_MARK = "__label__"  # of fastText


def read_lines(text: str, where: str) -> tuple[dict[str, list[Any]], list[str]]:
    """Return a row for each line that is not blank; lines that begin with fastText's __label__ have labels, too."""
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    if not lines or not all(line.startswith(_MARK) for line in lines):
        return {"text": lines}, ["a text is a line"]
    labels, texts = [], []
    for line in lines:
        words = line.split()
        count = next((place for place, word in enumerate(words) if not word.startswith(_MARK)), len(words))
        labels.append([word.removeprefix(_MARK) for word in words[:count]])
        texts.append(" ".join(words[count:]))
    if all(len(entry) == 1 for entry in labels):
        return {"text": texts, "label": [entry[0] for entry in labels]}, ["labels as fastText writes them"]
    return {"text": texts, "labels": labels}, ["labels as fastText writes them"]


def read_text_folder(
    where: str, folder: Path, *, encoding: str | None = None, flat: bool = False
) -> tuple[dict[str, list[Any]], list[str]]:
    """Return a row for each text file in a folder with one folder of them per class.

    Args:
        where: How the user named it.
        folder: The folder.
        encoding: The encoding of the files; found for each when None.
        flat: Whether a folder of files without classes is also taken, as one set to predict on.

    Raises:
        UserError: if there are no files, or one cannot be read.
    """
    found: ClassFolders = list_class_folders(where, folder, ENDINGS, "texts", flat=flat)
    texts, guessed = [], 0
    for file in found.files:
        text, note = decode(read_bytes(f"{where}: {file}", file), f"{where}: {file}", encoding)
        texts.append(text)
        guessed += note is not None
    if len(texts) != len(found.files):
        raise UserError(f"{where}: {len(found.files)} files found, {len(texts)} read.")
    notes = [*found.notes, *([f"{guessed:,} files are not UTF-8 (--encoding names the encoding)"] if guessed else [])]
    columns: dict[str, list[Any]] = {"text": texts, "file": [str(file.relative_to(folder)) for file in found.files]}
    return columns | ({"label": found.labels} if found.labels else {}), notes
