# SPDX-License-Identifier: Apache-2.0
"""Which characters are these bytes? A byte order mark says it, UTF-8 proves itself, and the rest is guessed aloud."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path

from hf_sam.cli.common.errors import UserError, one_line

OPENERS: dict[str, Callable[..., bytes]] = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
_MARKS = (  # longest first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Four letters in a row outside of ASCII are no word of Western Europe, for which cp1252 was made, but common in every
# other 8-bit encoding: Cyrillic, Greek, Chinese.
_FOREIGN = re.compile(rb"[\x80-\xff]{4,}")
_UTF8 = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_HIGH = re.compile(rb"[\x80-\xff]")


def read_bytes(where: str, path: Path) -> bytes:
    """Return what is in the file, decompressed if its name ends in gz, bz2 or xz."""
    try:
        content = path.read_bytes()
        return OPENERS[path.suffix.lower()](content) if path.suffix.lower() in OPENERS else content
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise UserError(f"{where} cannot be read: {one_line(error)}") from error


def decode(content: bytes, where: str, encoding: str | None = None) -> tuple[str, str | None]:
    """Return the text, and what there is to say about how it was read.

    Raises:
        UserError: if the named encoding does not fit, or none was named and none fits.
    """
    if encoding is not None:
        return _as(content, where, encoding), None
    for mark, name in _MARKS:
        if content.startswith(mark):
            return _as(content, where, name), None if name == "utf-8-sig" else f"read as {name.upper()}"
    if (wide := _wide(content)) is not None:
        return _as(content, where, wide), f"read as {wide.upper()}, without a byte order mark"
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return _western(content, where, error.start)
    return _without_nul(text, where), None


def _as(content: bytes, where: str, encoding: str) -> str:
    try:
        return _without_nul(content.decode(encoding), where)
    except LookupError as error:
        raise UserError(f"--encoding {encoding} is unknown: utf-8, cp1252, latin-1, utf-16, cp1251, ...") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where}, line {line}: not {encoding} ({error.reason}): --encoding names the encoding."
        ) from error


def _without_nul(text: str, where: str) -> str:
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{where}, line {line}: holds a NUL, so it is no text file, or --encoding names its encoding.")
    return text


def _wide(content: bytes) -> str | None:
    """Return UTF-16's name if every other byte tends to be zero, as in text of mostly Latin letters without a mark."""
    start = content[:4096]
    if len(start) < 4 or len(content) % 2:
        return None
    even, odd = start[::2].count(0), start[1::2].count(0)
    if odd > 0.4 * len(start) / 2 and even < odd / 10:
        return "utf-16-le"
    return "utf-16-be" if even > 0.4 * len(start) / 2 and odd < even / 10 else None


def _western(content: bytes, where: str, start: int) -> tuple[str, str]:
    line = content.count(b"\n", 0, start) + 1
    pieces = _UTF8.findall(content)
    if len(pieces) > 2 and sum(map(len, pieces)) * 2 > len(_HIGH.findall(content)):
        raise UserError(
            f"{where}, line {line}: not UTF-8, which the rest is: two encodings were put together, or a character was "
            "cut: correct the line, or name another with --encoding."
        )
    foreign = next((run for run in _FOREIGN.findall(content) if len(set(run)) > 2), None)
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        text = ""
    if foreign or not text or "\0" in text:
        raise UserError(f"{where}, line {line}: neither UTF-8 nor cp1252: --encoding names the encoding, as in cp1251.")
    shown = one_line(content.splitlines()[line - 1].decode("cp1252"), 60)
    return text, f"read as cp1252 (Windows), because it is not UTF-8; line {line}: {shown} (--encoding names another)"
