# SPDX-License-Identifier: Apache-2.0
"""Is a file read in the encoding it was written in, and refused where that cannot be told?"""

from __future__ import annotations

import pytest

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.reading.encodings import decode
from tests.looped import looped

GERMAN = "text;label\nDas Gerät läuft heiß: „sofort“ tauschen für 5 €;Störung\n"


@looped
@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8", None), ("utf-8-sig", None), ("utf-16", "UTF-16"), ("utf-16-le", "UTF-16-LE"),
        ("utf-16-be", "UTF-16-BE"), ("utf-32", "UTF-32"), ("cp1252", "cp1252 (Windows)"),
    ],
)  # fmt: skip
def test_the_encodings_of_german_are_found_and_said(encoding: str, said: str | None) -> None:
    text, note = decode(GERMAN.encode(encoding), "x.csv")
    assert text == GERMAN
    assert note is None if said is None else said in str(note)


def test_a_guess_shows_the_line_it_was_made_for() -> None:
    assert "line 2: Das Gerät läuft" in str(decode(GERMAN.encode("cp1252"), "x.csv")[1])


@looped
@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("text\nдлинный\n", "cp1251"), ("text\n你好世界,谢谢\n", "gbk"), ("text\nこんにちは\n", "shift-jis"),
        ("καλημέρα", "cp1253"),
    ],
)  # fmt: skip
def test_other_encodings_are_refused_until_they_are_named(text: str, encoding: str) -> None:
    with pytest.raises(UserError, match=r"x\.csv, line \d.*--encoding"):
        decode(text.encode(encoding), "x.csv")
    assert decode(text.encode(encoding), "x.csv", encoding)[0] == text


def test_a_file_of_two_encodings_is_refused_where_it_changes() -> None:
    mixed = GERMAN.encode("utf-8") * 3 + "Größe;zu klein\n".encode("cp1252")
    with pytest.raises(UserError, match="line 7: not UTF-8, which the rest is"):
        decode(mixed, "x.csv")
    assert decode("„heiß“;1\n".encode("cp1252"), "x.csv")[0] == "„heiß“;1\n"  # two of its bytes could be UTF-8


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="line 1: holds a NUL"):
        decode(b"text\0label\n" + b"a" * 5000, "x.csv")
    with pytest.raises(UserError, match="--encoding klingon is unknown"):
        decode(b"a", "x.csv", "klingon")
    with pytest.raises(UserError, match="line 2: not utf-8"):
        decode(b"text\n\xe4\n", "x.csv", "utf-8")
