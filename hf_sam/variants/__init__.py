# SPDX-License-Identifier: Apache-2.0
"""The variants by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from hf_sam._checks import checked_choice, known_options
from hf_sam.variants.asam import ASAM
from hf_sam.variants.base import Length, LengthOf, OnePass, Regulariser, Variant
from hf_sam.variants.friendly import FriendlySAM
from hf_sam.variants.gsam import GSAM
from hf_sam.variants.looksam import LookSAM
from hf_sam.variants.lora.bar import NBAR, OBAR
from hf_sam.variants.lora.bi_lora import BiLoRA
from hf_sam.variants.lora.flat_lora import FlatLoRA
from hf_sam.variants.momentum import Momentum
from hf_sam.variants.random_direction import RandomDirection
from hf_sam.variants.sam import SAM

VARIANTS: dict[str, type[Variant]] = {
    "sam": SAM,
    "asam": ASAM,
    "gsam": GSAM,
    "friendly": FriendlySAM,
    "looksam": LookSAM,
    "momentum": Momentum,
    "random": RandomDirection,
    "nbar": NBAR,
    "obar": OBAR,
    "flat_lora": FlatLoRA,
    "bi_lora": BiLoRA,
}
"""Variants by the name used in `sam_variant`. A new one is a class and a line here."""
OTHER_NAMES = {
    **dict.fromkeys(("msam", "momentum_sam", "momentum-sam"), "momentum"),
    **dict.fromkeys(("fsam", "f-sam", "friendly_sam", "friendly-sam"), "friendly"),
    **dict.fromkeys(("rwp", "noise"), "random"),
    **dict.fromkeys(("adaptive", "adaptive_sam"), "asam"),
    **dict.fromkeys(("bar", "lora"), "nbar"),
}
"""What some of them are called in other places, to name the right one in an error."""


def make_variant(name: str, kwargs: Mapping[str, Any] | None = None, *, argument: str = "sam_variant") -> Variant:
    """Return a new instance of the variant called `name`.

    Args:
        name: a key of `VARIANTS`.
        kwargs: the variant's options.
        argument: what the user calls the name, for messages.

    Raises:
        ValueError: if there is no such variant or no such option, or an option is out of range.
    """
    checked_choice(argument, name, tuple(VARIANTS), OTHER_NAMES)
    known_options(argument, name, inspect.signature(VARIANTS[name]).parameters, kwargs)
    return VARIANTS[name](**(kwargs or {}))


__all__ = [
    "ASAM",
    "GSAM",
    "NBAR",
    "OBAR",
    "SAM",
    "VARIANTS",
    "BiLoRA",
    "FlatLoRA",
    "FriendlySAM",
    "Length",
    "LengthOf",
    "LookSAM",
    "Momentum",
    "OnePass",
    "RandomDirection",
    "Regulariser",
    "Variant",
    "make_variant",
]
