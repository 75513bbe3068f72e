# SPDX-License-Identifier: Apache-2.0
"""Which files lie in a folder with one folder per class? Listed by ourselves: a name is never a split or a pattern."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hf_sam.cli.common.errors import UserError

_SETS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}


@dataclass
class ClassFolders:
    """Files in a fixed order; labels are the names of their class folders, none for a flat folder."""

    files: list[Path]
    labels: list[str]
    notes: list[str] = field(default_factory=list)


def list_class_folders(where: str, root: Path, endings: frozenset[str], what: str, *, flat: bool) -> ClassFolders:
    """List the files with these endings. The class of a file is the first folder below `root`, however deep it lies.

    Args:
        where: How the user named the folder.
        root: The folder.
        endings: What the names of the files end in, in lower case.
        what: What the files are, for messages.
        flat: Whether files that lie in the folder itself are a set without classes, if there are no class folders.

    Raises:
        UserError: if there are fewer than two classes (and it is not flat), or the folders are sets, not classes.
    """
    if not root.is_dir():
        raise UserError(f"{where} does not exist (or is no folder).")
    wanted: dict[str, list[Path]] = {}
    others: Counter[str] = Counter()
    for path in _walk(root):
        parts = path.relative_to(root).parts
        if path.suffix.lower() in endings and not any(part.startswith((".", "__MACOSX")) for part in parts):
            wanted.setdefault(parts[0] if len(parts) > 1 else "", []).append(path)
        else:
            others[path.suffix.lower() or path.name] += 1
    loose = wanted.pop("", [])
    notes = [_left_out(others)] if others else []
    if flat and not wanted and loose:
        return ClassFolders(loose, [], notes)
    if not flat or not wanted:
        _check_classes(where, root, wanted, loose, what)
    if loose:
        notes.append(f"{len(loose):,} {what} beside the class folders have no class and are left out ({loose[0].name})")
    if wanted and all(name.lower() in _SETS for name in wanted):
        notes.append(f"the classes are called {', '.join(sorted(wanted))}, as sets often are")
    notes += _nested(root, wanted, what) + _empty(root, wanted, what)
    files = [(path, name) for name in sorted(wanted) for path in wanted[name]]
    return ClassFolders([path for path, _ in files], [name for _, name in files], notes)


def _walk(root: Path) -> Iterator[Path]:
    """Yield every file below, in order. Links to folders are followed, each folder once on a way down."""
    for folder, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        real = os.path.realpath(folder)
        if any(os.path.realpath(up) == real for up in _between(root, Path(folder))):
            folders.clear()  # a link to a folder above it
            continue
        yield from (Path(folder, name) for name in sorted(files))


def _between(root: Path, folder: Path) -> list[Path]:
    parts = folder.relative_to(root).parts
    return [root.joinpath(*parts[:count]) for count in range(len(parts))]


def _check_classes(where: str, root: Path, wanted: dict[str, list[Path]], loose: list[Path], what: str) -> None:
    if not wanted and loose:
        raise UserError(
            f"{where} must hold one folder of {what} per class, found {len(loose)} {what} and no class folders."
        )
    if len(wanted) == 1:
        name = next(iter(wanted))
        inside = {path.relative_to(root / name).parts[0] for path in wanted[name] if path.parent != root / name}
        hint = f"; --train_dir {root / name} holds {len(inside)} folders" if len(inside) > 1 else ""
        raise UserError(
            f"{where} must hold one folder of {what} per class, and only {name!r} holds {what}: "
            f"at least 2 classes are needed{hint}."
        )
    if not wanted:
        raise UserError(f"{where} must hold one folder of {what} per class, found no {what}.")
    inner = {
        name: {p.relative_to(root / name).parts[0] for p in wanted[name] if p.parent != root / name} for name in wanted
    }
    if all(name.lower() in _SETS for name in wanted) and all(len(names) > 1 for names in inner.values()):
        first = next((name for name in wanted if name.lower().startswith("train")), next(iter(wanted)))
        others = ", ".join(name for name in wanted if name != first)
        raise UserError(
            f"{where} holds sets with class folders in them, not classes: give --train_dir {root / first} "
            f"(and --validation_dir or --test_dir for {others})."
        )


def _left_out(others: Counter[str]) -> str:
    shown = ", ".join(f"{count} x {ending}" for ending, count in others.most_common(4))
    return f"{sum(others.values()):,} other files are left out ({shown})"


def _nested(root: Path, wanted: dict[str, list[Path]], what: str) -> list[str]:
    deep = [path for name, paths in wanted.items() for path in paths if path.parent != root / name]
    if not deep:
        return []
    parts = deep[0].relative_to(root).parts
    return [f"{len(deep):,} {what} lie deeper: their class is the first folder ({'/'.join(parts)}: {parts[0]})"]


def _empty(root: Path, wanted: dict[str, list[Path]], what: str) -> list[str]:
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    empty = [name for name in folders if name not in wanted and name != "__MACOSX"]
    return [f"folders without {what} are no classes: {', '.join(empty[:5])}"] if empty else []
