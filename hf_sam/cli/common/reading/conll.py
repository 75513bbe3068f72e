# SPDX-License-Identifier: Apache-2.0
"""Read CoNLL files as sentences: a word a line, its tags beside it, and a blank line after each sentence."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.reading.encodings import decode, read_bytes
from hf_sam.cli.common.reading.tables import Table, ending_of, read_table

ENDINGS = (".conll", ".conllu", ".conllup", ".conll2003", ".bio", ".iob", ".iob2", ".bioes", ".ner", ".txt", ".tsv")
LINE = "#line"  # the column with the number of each sentence's first line
OF_CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
LONGEST = 2_000  # words; a sentence of more is a file without blank lines
_SPLITS = {" ": re.compile(r"[ \t]+"), "\t": re.compile(r"\t")}  # no other space ends a word
_DOCUMENT = re.compile(r"-DOCSTART-?(\s|$)")
_KEY = re.compile(r"#\s*([\w.:-]+\s*=|id\s)")  # "# sent_id = 3" of Universal Dependencies, "# id 3" of MultiCoNER
_EMPTY_OR_RANGE = re.compile(r"\d+[-.]\d+")  # words of CoNLL-U that are not there, or are several
Line = tuple[int, list[str]]


def read_sentences(argument: str, path: str, *, encoding: str | None = None, separator: str | None = None) -> Table:
    """Read the file given as `--argument path`: by its ending as CoNLL, or as a table with lists in its rows.

    Raises:
        UserError: if it is no file, empty, or its lines are no words with as many columns each.
    """
    where, file = f"--{argument} {path}", Path(path)
    ending = ending_of(file)
    if ending not in ENDINGS or not file.is_file():
        return read_table(argument, path, encoding=encoding, separator=separator, more=ENDINGS)
    text, note = decode(read_bytes(where, file), where, encoding)
    if ending == ".tsv" and not re.search(r"\S\r?\n[ \t]*\r?\n\s*\S", text):  # no blank line: a row is a sentence
        return read_table(argument, path, encoding=encoding, separator=separator)
    columns, notes = read_conll(text, where, universal=ending.startswith(".conllu"))
    return Table(where, columns, [note, *notes] if note else notes, file.absolute().parent)


def read_conll(text: str, where: str, *, universal: bool = False) -> tuple[dict[str, list[Any]], list[str]]:
    """Return one list a sentence for each column, named by its number from 1 (or as CoNLL-U names it), and notes.

    Args:
        text: The whole file.
        where: How the user named it.
        universal: Whether it is CoNLL-U, whose ten columns have names.

    Raises:
        UserError: if there is no word, or a line has more or fewer columns than the others.
    """
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1)]
    mark = _separator([line for _, line in lines])
    names = _names(lines, universal)
    sentences = _sentences(lines, mark)
    if not sentences:
        raise UserError(f"{where} is empty: a word a line with its tag beside it is needed, found none.")
    width = len(sentences[0][0][1])
    _check(sentences, where, width, mark)
    if names is None and width == len(OF_CONLLU) and _counts_up(sentences, 0):
        names = list(OF_CONLLU)
    if names is not None and len(names) != width:
        raise UserError(
            f"{where}, line {sentences[0][0][0]}: {width} columns, and {len(names)} have names: correct it."
        )
    if names is not None:
        sentences = [left for s in sentences if (left := [w for w in s if not _EMPTY_OR_RANGE.fullmatch(w[1][0])])]
    chosen = names or [str(place) for place in range(1, width + 1)]
    columns: dict[str, list[Any]] = {
        name: [[fields[place] for _, fields in sentence] for sentence in sentences]
        for place, name in enumerate(chosen)
        if place or not _counts_up(sentences, 0)  # the number of a word in its sentence is nothing to learn
    }
    columns[LINE] = [sentence[0][0] for sentence in sentences]
    return columns, [f"CoNLL: {width} columns between {'tabs' if mark == chr(9) else 'spaces'}"]


def _separator(lines: list[str]) -> str:
    words = [line for line in lines if line.strip() and not line.startswith("#") and not _DOCUMENT.match(line)]
    return "\t" if 2 * sum("\t" in line for line in words) > len(words) else " "


def _names(lines: list[tuple[int, str]], universal: bool) -> list[str] | None:
    """Return the names of the columns that the format fixes, or that a first line of CoNLL-U Plus gives."""
    first = next((line for _, line in lines if line.strip()), "")
    if first.startswith("# global.columns"):
        return [name.lower() for name in first.partition("=")[2].split()]
    return list(OF_CONLLU) if universal else None


def _sentences(lines: list[tuple[int, str]], mark: str) -> list[list[Line]]:
    split = _SPLITS[mark].split
    widths = Counter(len(split(line.strip(" "))) for _, line in lines if line.strip() and not line.startswith("#"))
    usual = max(widths, key=lambda width: widths[width], default=0)
    sentences: list[list[Line]] = [[]]
    for number, line in lines:
        if not line.strip() or _DOCUMENT.match(line):
            if sentences[-1]:
                sentences.append([])
        elif not (line.startswith("#") and _is_comment(line, mark, usual, first=not sentences[-1])):
            sentences[-1].append((number, split(line.strip(" ") if mark == "\t" else line.strip())))
    return [sentence for sentence in sentences if sentence]


def _is_comment(line: str, mark: str, usual: int, *, first: bool) -> bool:
    """Say whether a line that begins with # is about the sentence below it, and not the word #."""
    if len(_SPLITS[mark].split(line.strip(" "))) != usual:
        return first or mark == "\t"
    return first and (_KEY.match(line) is not None or (mark == " " and "\t" in line))


def _check(sentences: list[list[Line]], where: str, width: int, mark: str) -> None:
    kind = "tabs" if mark == "\t" else "spaces"
    for sentence in sentences:
        for number, fields in sentence:
            if len(fields) != width:
                shown = one_line(mark.join(fields), 60)
                raise UserError(
                    f"{where}, line {number}: {len(fields)} columns between {kind}, but line {sentences[0][0][0]} has "
                    f"{width}: {shown!r}: correct the line."
                )
            if "" in fields:
                raise UserError(f"{where}, line {number}: column {fields.index('') + 1} is empty: fill it in.")
        if len(sentence) > LONGEST:
            raise UserError(
                f"{where}, line {sentence[0][0]}: a sentence of {len(sentence):,} words: a blank line is needed after "
                "each sentence."
            )


def _counts_up(sentences: list[list[Line]], place: int) -> bool:
    """Say whether a column only numbers the words of each sentence, from 0 or 1."""
    if len(sentences[0][0][1]) < 2:
        return False
    found = [[fields[place] for _, fields in sentence] for sentence in sentences]
    found = [[number for number in numbers if not _EMPTY_OR_RANGE.fullmatch(number)] for numbers in found]
    starts = {numbers[0] for numbers in found if numbers}
    if len(starts) != 1 or not starts <= {"0", "1"} or all(len(numbers) < 2 for numbers in found):
        return False
    start = int(next(iter(starts)))
    return all(number == str(k) for numbers in found for k, number in enumerate(numbers, start))
