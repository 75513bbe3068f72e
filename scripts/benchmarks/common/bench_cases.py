# SPDX-License-Identifier: Apache-2.0
"""Which settings does the benchmark compare with the plain Trainer, and with which one?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_sam import SAMConfig


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        settings: of `SAMConfig`; None for the plain Trainer.
        lora: whether the model has LoRA adapters; it is then compared with the plain Trainer on such a model.
    """

    settings: dict[str, Any] | None = field(default_factory=dict)
    lora: bool = False

    @property
    def base(self) -> str:
        """The plain Trainer that this one is compared with."""
        return "plain LoRA" if self.lora else "plain"

    @property
    def config(self) -> SAMConfig | None:
        """The configuration; None for the plain Trainer."""
        return None if self.settings is None else SAMConfig(**self.settings)


CASES: dict[str, Case] = {
    "plain": Case(None),
    "sam": Case(),
    "asam": Case({"sam_variant": "asam"}),
    "gsam": Case({"sam_variant": "gsam"}),
    "friendly": Case({"sam_variant": "friendly"}),
    "momentum": Case({"sam_variant": "momentum", "sam_start": 0.0}),
    "momentum, rho auto": Case({"sam_variant": "momentum", "sam_start": 0.0, "rho": "auto"}),
    "sam, rho auto": Case({"rho": "auto"}),
    "random": Case({"sam_variant": "random"}),
    "looksam, k 5": Case({"sam_variant": "looksam", "sam_variant_kwargs": {"k": 5}}),
    "ascent_fraction 0.25": Case({"ascent_fraction": 0.25}),
    "sam_every 5": Case({"sam_every": 5}),
    "sam_start 0.8": Case({"sam_start": 0.8}),
    "last:2": Case({"sam_parameters": "last:2"}),
    "norm": Case({"sam_parameters": "norm"}),
    "plain LoRA": Case(None, lora=True),
    "sam, LoRA": Case({}, lora=True),
    "nbar, LoRA": Case({"sam_variant": "nbar"}, lora=True),
    "obar, LoRA": Case({"sam_variant": "obar"}, lora=True),
    "flat_lora, LoRA": Case({"sam_variant": "flat_lora"}, lora=True),
    "bi_lora, LoRA": Case({"sam_variant": "bi_lora"}, lora=True),
}
"""By name, in the table's order."""
