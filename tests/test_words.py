# SPDX-License-Identifier: Apache-2.0
"""Is the package written in plain words, one for each thing? Read from the source, nothing is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_YET: tuple[str, ...] = ("cli",)
"""Entries of the package that are still to be rewritten. Meant to be empty."""

# A sentence has a subject that can be named.
RIDDLES = re.compile(r"\b(nobody|whoever|somebody|anybody|everybody|elsewhere)\b", re.IGNORECASE)
# Each was a name of something that the design now calls otherwise.
RETIRED = {
    "Excursion", "excursion", "climb", "come_back", "bring_back", "ahead", "anticipate", "ascents", "Moment", "moment",
    "Policy", "policy", "portion", "laid_out_as", "Loan", "loan", "Probe", "probe", "Problem", "StayWide", "Memory",
    "memory", "beside",
}  # fmt: skip
VARIANTS = re.compile(r"\b(Variant|OnePass|Regulariser)\b")


def package_files() -> list[Path]:
    files = sorted((ROOT / "hf_sam").rglob("*.py"))
    return [path for path in files if path.relative_to(ROOT / "hf_sam").parts[0].removesuffix(".py") not in NOT_YET]


# ----------------------------------------------------------------------------------------------------------------------
# The checks: each takes source text and yields one line per violation
# ----------------------------------------------------------------------------------------------------------------------
def questions(source: str) -> Iterator[str]:
    """Yield the modules and public objects whose docstring begins with a question and not with what they do."""
    open_nodes: list[ast.AST] = [ast.parse(source)]
    while open_nodes:
        node = open_nodes.pop()
        first = (ast.get_docstring(node) or "").partition("\n")[0]
        if "?" in first:
            yield f"{getattr(node, 'name', 'the module')}: {first}"
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
                open_nodes.append(child)


def riddles(source: str) -> Iterator[str]:
    """Yield the lines, of code, comments, docstrings or messages, with a word for nobody in particular."""
    for number, line in enumerate(source.splitlines(), 1):
        if found := RIDDLES.search(line):
            yield f"line {number}: {found.group()}"


def identifiers(source: str) -> Iterator[tuple[int, str]]:
    """Yield every name that the source defines or uses, with its line."""
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        for field in ("id", "attr", "name", "arg", "asname", "module"):
            if isinstance(name := getattr(node, field, None), str):
                yield from ((line, part) for part in name.split("."))


def retired(source: str) -> Iterator[str]:
    for line, name in identifiers(source):
        if name in RETIRED:
            yield f"line {line}: {name}"


def misnamed_variants(source: str) -> Iterator[str]:
    """Yield what holds a variant and is called a direction, which is a vector."""
    for node in ast.walk(ast.parse(source)):
        name = (
            node.arg
            if isinstance(node, ast.arg)
            else ast.unparse(node.target)
            if isinstance(node, ast.AnnAssign)
            else ""
        )
        annotation = getattr(node, "annotation", None)
        if name.endswith("direction") and annotation is not None and VARIANTS.search(ast.unparse(annotation)):
            yield f"line {node.lineno}: {name}: {ast.unparse(annotation)}"


CHECKS = [questions, riddles, retired, misnamed_variants]


@pytest.mark.parametrize("check", CHECKS)
def test_the_package_keeps_to_the_words(check: Callable[[str], Iterator[str]]) -> None:
    found = {str(p.relative_to(ROOT)): list(check(p.read_text(encoding="utf-8"))) for p in package_files()}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("check", "source", "count"),
    [
        (questions, '"""How does it work?"""', 1),
        (questions, '"""A gate.\n\nWhich steps perturb?\n"""', 0),
        (questions, 'class Gate:\n    def opens(self):\n        """Is it open?"""', 1),
        (questions, 'def _private():\n    """Is it open?"""', 0),
        (riddles, "steps = 0  # nobody knows", 1),
        (riddles, 'raise ValueError("It is Elsewhere.")', 1),
        (riddles, "body = 1", 0),
        (retired, "from hf_sam.moment import Moment as M", 2),
        (retired, "def f(policy): return self.loan.first_moment", 2),
        (misnamed_variants, "def f(direction: OnePass): ...", 1),
        (misnamed_variants, "self.direction: Variant = make()", 1),
        (misnamed_variants, "def f(direction: list[Tensor], variant: Variant): ...", 0),
    ],
)
def test_each_check_finds_what_it_is_for(check: Callable[[str], Iterator[str]], source: str, count: int) -> None:
    assert len(list(check(source))) == count


def test_only_what_exists_is_left_out() -> None:
    assert [
        name
        for name in NOT_YET
        if not (ROOT / "hf_sam" / name).exists() and not (ROOT / "hf_sam" / f"{name}.py").exists()
    ] == []
