# SPDX-License-Identifier: Apache-2.0
"""The pages of the documentation as text, and what is in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = r"https://raw\.githubusercontent\.com/hf-sam/hf_sam/main/([\w./]+)"
"""A file of this repository where an index of packages finds it."""
DOCS = ROOT / "docs"
GENERATED = re.compile(r"<!-- table: [\w ]+ -->\n.*?<!-- end -->", re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: .+ -->\n$")


def pages() -> dict[str, str]:
    """Return the text of the README and of each page, by its path."""
    paths = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def words_in(text: str) -> int:
    """Count the words of a page without the tables that are generated."""
    return len(GENERATED.sub("", text).split())


def code_in(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each block of Python, and whether it runs: "<!-- not run: why -->" before it says that it does not."""
    for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        yield block[1], not NOT_RUN.search(text[: block.start()])


def links_in(text: str) -> list[str]:
    """Return where the links and images of a page lead to."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def settings() -> dict[str, Any]:
    """Return mkdocs.yml."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    return found


def in_navigation(entries: list[Any]) -> Iterator[str]:
    """Yield the pages of the navigation."""
    for entry in entries:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(target, list):
                yield from in_navigation(target)
            else:
                yield target
