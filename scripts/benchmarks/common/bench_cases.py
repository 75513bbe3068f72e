# SPDX-License-Identifier: Apache-2.0
"""Which settings does the benchmark compare with the plain Trainer, and with which one?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_sam import VARIANTS, SAMConfig


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        settings: of `SAMConfig`; None for a Trainer without.
        lora: whether the model has LoRA adapters; it is then compared with the plain Trainer on such a model.
        passes: how many a step cannot do without: 2 for full SAM, 1 for a step that climbs before its pass; None where
            it is neither, or where steps differ. What such a step costs at least is known from the plain one.
        mixed: whether some steps cost more than others; the mean is then what counts.
        by_hand: whether another library's SAM is put into the Trainer.
    """

    settings: dict[str, Any] | None = field(default_factory=dict)
    lora: bool = False
    passes: int | None = None
    mixed: bool = False
    by_hand: bool = False

    @property
    def base(self) -> str:
        """The plain Trainer that this one is compared with."""
        return "plain LoRA" if self.lora else "plain"

    @property
    def config(self) -> SAMConfig | None:
        """The configuration; None for the plain Trainer.

        A number stands for the radius where `rho="auto"` is the default: a benchmark is over before a model memorises,
        and would time plain steps.
        """
        if self.settings is None:
            return None
        variant = VARIANTS[self.settings.get("sam_variant", "sam")]
        return SAMConfig(**({"rho": variant.default_rho} if variant.auto_by_default else {}) | self.settings)


CASES: dict[str, Case] = {
    "plain": Case(None),
    "sam": Case(passes=2),
    "pytorch-optimizer, by hand": Case(None, passes=2, by_hand=True),
    "asam": Case({"sam_variant": "asam"}, passes=2),
    "gsam": Case({"sam_variant": "gsam"}, passes=2),
    "friendly": Case({"sam_variant": "friendly"}, passes=2),
    "momentum": Case({"sam_variant": "momentum", "sam_start": 0.0}, passes=1),
    "random": Case({"sam_variant": "random"}, passes=1),
    "looksam, k 5": Case({"sam_variant": "looksam", "sam_variant_kwargs": {"k": 5}}, mixed=True),
    "ascent_fraction 0.25": Case({"ascent_fraction": 0.25}),
    "sam_every 5": Case({"sam_every": 5}, mixed=True),
    "sam_start 0.8": Case({"sam_start": 0.8}, mixed=True),
    "last:2": Case({"sam_parameters": "last:2"}),
    "norm": Case({"sam_parameters": "norm"}),
    "plain LoRA": Case(None, lora=True),
    "sam, LoRA": Case({}, lora=True, passes=2),
    "nbar, LoRA": Case({"sam_variant": "nbar"}, lora=True, passes=1),
    "obar, LoRA": Case({"sam_variant": "obar"}, lora=True, passes=1),
    "flat_lora, LoRA": Case({"sam_variant": "flat_lora"}, lora=True, passes=1),
    "bi_lora, LoRA": Case({"sam_variant": "bi_lora"}, lora=True),
}
"""By name, in the table's order."""
