# SPDX-License-Identifier: Apache-2.0
"""Does the documentation build without a warning, and does the site stand alone?"""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

pytestmark = pytest.mark.slow
LOADED = re.compile(
    r"<(?:script|img|iframe)[^>]*\bsrc=\"?(https?:)?//|<link[^>]*rel=\"?stylesheet[^>]*href=\"?(https?:)?//"
)
UNRENDERED = re.compile(r"\*\*\w|\]\([\w./#]+\)|^::: |^\| ", re.MULTILINE)
"""Marks of Markdown that a reader must not see."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def test_a_page_loads_nothing_from_the_network(site: Path) -> None:
    found = {path.name: LOADED.findall(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(found) > 40
    assert {name: links for name, links in found.items() if links} == {}


def test_every_page_is_rendered(site: Path) -> None:
    for path in site.rglob("*.html"):
        article = path.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]
        prose = re.sub(r"<(pre|code)\b.*?</\1>", "", article, flags=re.DOTALL)
        assert not UNRENDERED.findall(html.unescape(re.sub(r"<[^>]+>", "", prose))), path.name
