# SPDX-License-Identifier: Apache-2.0
"""Can every check of test_layout.py fail? Each gets source that breaks its rule, and source that keeps it."""

from __future__ import annotations

import pytest

from tests.looped import looped
from tests.test_layout import (
    FUNCTION_LINES,
    bad_imports,
    cycle_in,
    forbidden,
    long_functions,
    missing_from,
    public_names,
    undocumented,
    unwanted,
)

KNOWN = {
    "hf_sam",
    "hf_sam.vectors.vectors",
    "hf_sam.variants",
    "hf_sam.variants.sam",
    "hf_sam.step.two_pass",
    "hf_sam.trainer.trainer",
}


@looped
@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hf_sam.vectors.vectors", "from hf_sam.step.two_pass import descend"),
        ("hf_sam.vectors.vectors", "from hf_sam import step"),
        ("hf_sam.variants.sam", "import hf_sam.trainer.trainer"),
        ("hf_sam.step.two_pass", "def f():\n    from hf_sam.trainer.trainer import SAMTrainer"),
        ("hf_sam.trainer.trainer", "from hf_sam import SAMTrainer"),
        ("hf_sam.trainer.trainer", "from hf_sam.unknown import x"),
        ("hf_sam.step.two_pass", "import transformers"),
        ("hf_sam.step.two_pass", "from accelerate.utils import gather"),
        ("hf_sam.trainer.trainer", "import numpy"),
        ("hf_sam.trainer.trainer", "from hf_sam.cli.finetune import main"),
        ("hf_sam.trainer.trainer", "from .step import descend"),
        ("hf_sam.brand_new", "import torch"),
    ],
)
def test_an_import_that_points_up_or_out_is_found(module: str, source: str) -> None:
    assert list(bad_imports(module, source, KNOWN))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "hf_sam.step.two_pass",
            "import math\nimport torch\nfrom hf_sam.vectors.vectors import dot\nfrom hf_sam.variants import SAM",
        ),
        ("hf_sam.variants", "from hf_sam.variants.sam import SAM"),
        ("hf_sam.trainer.trainer", "import transformers\nfrom hf_sam.step import two_pass"),
        ("hf_sam", "from hf_sam.trainer.trainer import SAMTrainer"),
    ],
)
def test_an_import_that_points_down_is_fine(module: str, source: str) -> None:
    assert not list(bad_imports(module, source, KNOWN))


def test_a_circle_of_imports_is_found() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"torch"}}) == ["a", "b", "c"]
    assert not cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": {"torch"}})


def test_a_long_function_is_found_and_its_docstring_is_free() -> None:
    fits = "def f():\n    '''" + "word\n" * 50 + "'''\n" + "    x = 1\n" * FUNCTION_LINES
    assert not list(long_functions(fits))
    assert list(long_functions(fits + "    x = 1\n"))
    assert list(long_functions("class A:\n  async def f(self):\n" + "    x = 1\n" * (FUNCTION_LINES + 1)))


@looped
@pytest.mark.parametrize(
    "source",
    [
        "assert x",
        "try:\n    f()\nexcept:\n    pass",
        "raise Exception('no')",
        "raise Exception",
        "print(1)",
        "p.data = q",
        "p.data += q",
        "a, p.data = q",
        "import pickle",
        "def f():\n    from pickle import loads",
        "torch.save(x, 'f')",
        "torch.load('f')",
    ],
)
def test_what_the_library_never_does_is_found(source: str) -> None:
    assert list(forbidden(source))


def test_what_the_library_may_do_is_fine() -> None:
    assert not list(forbidden("try:\n    x = p.data\nexcept ValueError:\n    raise\nraise ValueError('a')\nlog(x)"))


@pytest.mark.parametrize("source", ["def f(): ...", "class A: ...", "class A:\n  'a'\n  def f(self): ..."])
def test_a_missing_docstring_is_found(source: str) -> None:
    assert list(undocumented(source))


def test_private_and_documented_names_are_fine() -> None:
    assert not list(undocumented("def _f(): ...\ndef g():\n  'g'\nclass A:\n  'a'\n  def __init__(self): ..."))


@pytest.mark.parametrize("text", ["# TO" + "DO", "/ho" + "me/me/x", "see (/wo" + "rk/x)", "pypi" + ".org/simple"])
def test_unwanted_text_is_found(text: str) -> None:
    assert list(unwanted(f"first line\n{text}\n")) == [f"line 2: {found}" for found in [next(unwanted(text))[8:]]]


def test_wanted_text_is_fine() -> None:
    assert not list(unwanted("#!/usr/bin/env bash\nhttps://example.com/work/\n../shared/work/\nscripts/home/\n"))


def test_a_public_name_that_no_page_mentions_is_found() -> None:
    names = public_names("__all__ = ['SAM', 'ASAM']")
    assert missing_from("only `ASAM` here", names) == ["SAM"]
    assert not missing_from("`SAM` and `ASAM`", names)
