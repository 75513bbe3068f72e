# SPDX-License-Identifier: Apache-2.0
"""Which directions are there, and how is one made from its name?"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from hf_sam.variants.asam import ASAM
from hf_sam.variants.base import Variant
from hf_sam.variants.sam import SAM

VARIANTS: dict[str, type[Variant]] = {
    "sam": SAM,
    "asam": ASAM,
}
"""Directions by the name used in `sam_variant`. A new one is a class and a line here."""


def make_variant(name: str, kwargs: Mapping[str, Any] | None = None, *, argument: str = "sam_variant") -> Variant:
    """Return a new instance of the variant called `name`.

    Args:
        name: a key of `VARIANTS`.
        kwargs: the variant's options.
        argument: what the user calls the name, for messages.

    Raises:
        ValueError: if there is no such variant or no such option, or an option is out of range.
    """
    if name not in VARIANTS:
        raise ValueError(f"`{argument}` must be one of {', '.join(VARIANTS)}, got {name!r}.")
    options = list(inspect.signature(VARIANTS[name]).parameters)
    unknown = sorted(set(kwargs or {}) - set(options))
    if unknown:
        known = ", ".join(options) if options else "none"
        raise ValueError(f"`{argument}_kwargs` for {name!r} has no option {unknown[0]!r}; its options: {known}.")
    return VARIANTS[name](**(kwargs or {}))


__all__ = ["ASAM", "SAM", "VARIANTS", "Variant", "make_variant"]
