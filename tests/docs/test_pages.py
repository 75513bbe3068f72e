# SPDX-License-Identifier: Apache-2.0
"""Is the documentation short, complete and true? Read from the sources, nothing is built."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from hf_sam import VARIANTS
from hf_sam.trainer.logs import KEYS
from tests.docs.pages import DOCS, PUBLISHED, ROOT, in_navigation, links_in, pages, settings, words_in
from tests.test_words import riddles

PAGES = pages()
PAGE_WORDS, README_WORDS = 1500, 700
SECTIONS = ("Formula", "Options", "Cost and memory", "When to use it", "Caveats", "Citation")
PUBLIC = [
    name for name in ("hf_sam", "hf_sam.sharpness", "hf_sam.robustness") if (ROOT / name.replace(".", "/")).is_dir()
]
"""Packages whose names are for users."""


def test_a_page_is_read_in_a_few_minutes() -> None:
    assert {page: n for page, text in PAGES.items() if (n := words_in(text)) > PAGE_WORDS} == {}


def test_tables_that_are_generated_do_not_count() -> None:
    assert words_in("two words\n<!-- table: a b -->\n| many | more |\n<!-- end -->\n") == 2


def test_the_readme_fits_two_screens() -> None:
    assert len(PAGES["README.md"].split()) <= README_WORDS


def test_the_readme_has_no_link_that_leads_nowhere_on_an_index_of_packages() -> None:
    assert [link for link in links_in(PAGES["README.md"]) if not link.startswith("https://")] == []


def test_every_page_is_in_the_navigation_once() -> None:
    listed = list(in_navigation(settings()["nav"]))
    assert sorted(listed) == sorted(page.removeprefix("docs/") for page in PAGES if page != "README.md")


def test_every_link_to_a_page_or_picture_leads_there() -> None:
    for page, text in PAGES.items():
        for link in links_in(text):
            target = link.partition("#")[0]
            if target and not target.startswith("https://"):
                assert ((ROOT / page).parent / target).is_file(), (page, link)


def test_every_path_in_a_page_is_there() -> None:
    """In backticks or behind `python`; "..." and capitals stand for a name of the reader's."""
    found = [
        (page, path)
        for page, text in PAGES.items()
        for path in re.findall(r"\b((?:docs|scripts|tests|hf_sam)/[\w./]*\w)", re.sub(PUBLISHED, r"\1", text))
        if not re.search(r"[A-Z]{4}", path.removesuffix("README.md"))
    ]
    assert len(found) > 50
    assert [(page, path) for page, path in found if not (ROOT / path).exists()] == []


def test_every_target_in_a_page_is_one_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for text in PAGES.values() for name in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)}
    assert {"run", "test", "docs", "bench", "results"} <= named <= targets


def test_every_page_says_who_does_what() -> None:
    assert {page: found for page, text in PAGES.items() if (found := list(riddles(text)))} == {}


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_is_in_the_api_once(package: str) -> None:
    shown = [
        name
        for page, text in PAGES.items()
        if page.startswith("docs/api/")
        for name in re.findall(rf"^::: {re.escape(package)}\.(\w+)$", text, re.MULTILINE)
    ]
    assert sorted(shown) == sorted(importlib.import_module(package).__all__)


@pytest.mark.parametrize("name", [name for name, kind in VARIANTS.items() if kind.__module__.startswith("hf_sam.")])
def test_every_variant_has_a_page_with_all_sections(name: str) -> None:
    text = PAGES[f"docs/variants/{name}.md"]
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == list(SECTIONS)
    assert f'sam_variant="{name}"' in text
    assert f"hf_sam.{VARIANTS[name].__name__}`" in text
    assert f"<!-- table: variant {name} -->" in text
    assert f"<!-- table: citation {name} -->" in text


def test_every_key_that_is_logged_is_explained() -> None:
    explained = set(re.findall(r"`(sam/\w+)`", PAGES["docs/guide/logging.md"]))
    in_source = set(re.findall(r'"(sam/\w+)"', (ROOT / "hf_sam/trainer/run_totals.py").read_text(encoding="utf-8")))
    assert in_source
    assert {key for keys in KEYS.values() for key in keys} | in_source <= explained


def test_the_site_takes_nothing_from_the_network() -> None:
    assert settings()["theme"]["font"] is False
    assert not {"extra_css", "extra_javascript"} & settings().keys()


def test_no_folder_of_the_documentation_is_empty() -> None:
    assert [folder for folder in DOCS.iterdir() if folder.is_dir() and not list(folder.glob("*.md"))] == []


def test_the_promises_are_those_that_the_tests_are_sorted_by() -> None:
    promised = re.findall(r"^(\d+)\. \*\*", PAGES["docs/promises.md"], re.MULTILINE)
    tested = re.findall(r"^\| (\d+) ", Path(ROOT / "tests/README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert promised == tested
